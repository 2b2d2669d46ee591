"""An engine without a model: named tensors laid out as the real engines lay theirs, for tests of checkpoints and of the loop.

It has what makes layouts hard: stages, tensor-parallel slices along either dim, a vocabulary that is padded (10 rows over 4
ranks: 3, 3, 3, 1), replicated vectors, a tied copy on the last stage, and ZeRO's flat ranges that cut through parameters.
A step is elementwise, so that its result does not depend on the layout.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import torch
import torch.distributed as dist

from pretrain.checkpoint.format import RunState
from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.loss_scale import LossScale
from pretrain.engine.protocol import EvaluationResult, Fragment, StateKind, StepResult
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import Shard

KINDS: tuple[StateKind, ...] = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Spec:
    shape: tuple[int, ...]
    dim: int | None
    stage: float
    """0: the first stage, 1: the last."""


SPECS = {
    "embedding.weight": Spec((10, 4), 0, 0),
    "layers.0.up.weight": Spec((8, 4), 0, 0),
    "layers.0.down.weight": Spec((4, 8), 1, 0),
    "layers.0.norm.weight": Spec((4,), None, 0),
    "layers.1.up.weight": Spec((8, 4), 0, 1),
    "layers.1.down.weight": Spec((4, 8), 1, 1),
    "layers.1.norm.weight": Spec((4,), None, 1),
}
TIED = "embedding.weight"


def initial(kind: str, name: str) -> torch.Tensor:
    """The global tensor that a fresh engine starts from."""
    generator = torch.Generator().manual_seed(sum(map(ord, kind + name)))
    return torch.randn(SPECS[name].shape, generator=generator)


class FakeEngine:
    """Implements pretrain.engine.protocol.Engine over plain tensors."""

    def __init__(self, mesh: ProcessMesh, specs: dict[str, Spec] | None = None) -> None:
        self.mesh = mesh
        self.step = 0
        self.skipped_steps = 0
        self.specs = SPECS if specs is None else specs
        self.num_parameters = sum(prod(spec.shape) for spec in self.specs.values())
        self.finished_loads: list[tuple[int, int]] = []
        self.poisoned_steps: set[int] = set()
        self.loss_scale: LossScale | None = None
        self._fragments = list(self._make())

    def set_loss_scale(self, state: LossScale) -> None:
        self.loss_scale = state

    def fragments(self) -> Iterator[Fragment]:
        yield from self._fragments

    def finish_load(self, step: int, skipped: int = 0) -> None:
        self.step, self.skipped_steps = step, skipped
        self.finished_loads.append((step, skipped))

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """Moves every value by a function of the step's tokens, the same for every layout."""
        local = torch.tensor([float(sum(batch.inputs["tokens"].sum() for batch in microbatches)), 0.0])
        local[1] = sum(batch.targets for batch in microbatches)
        if self.mesh.data.group is not None:
            dist.all_reduce(local, group=self.mesh.data.group)
        signal, targets = local.tolist()
        skipped = self.step in self.poisoned_steps
        loss = 5.0
        for fragment in self._fragments:
            if not skipped:
                fragment.tensor.mul_(0.97).add_(0.001 * (signal % 17))
                loss = float(fragment.tensor.mean())
        self.step += 1
        self.skipped_steps += skipped
        grad_norm = float("nan") if skipped else 1.5
        return StepResult(loss, loss, 0.0, grad_norm, 1e-3, int(targets), skipped)

    def evaluate(self, microbatches: Sequence[MicroBatch]) -> EvaluationResult:
        """A loss that falls with the position: 4 - position / 10."""
        targets = sum((batch.labels >= 0).sum(0) for batch in microbatches)
        assert isinstance(targets, torch.Tensor)
        if self.mesh.data.group is not None:
            dist.all_reduce(targets, group=self.mesh.data.group)
        return EvaluationResult((4.0 - torch.arange(len(targets)).double() / 10) * targets, targets)

    def _make(self) -> Iterator[Fragment]:
        """Fragments as ZeRO-1 makes them: the parameters of this rank end to end, cut into equal ranges over the data axis."""
        local = [(name, *self._local(name)) for name in self._names()]
        total = sum(prod(shape) for _, _, shape in local)
        piece = ceil(total / self.mesh.data.size)
        mine = range(piece * self.mesh.data.rank, min(total, piece * (self.mesh.data.rank + 1)))
        offset = 0
        for name, shard, shape in local:
            start, stop = max(offset, mine.start), min(offset + prod(shape), mine.stop)
            if start < stop:
                for kind in KINDS:
                    values = _local_values(initial(kind, name), shard, shape).flatten()[start - offset : stop - offset]
                    yield Fragment(kind, shard, shape, start - offset, values.clone(), self._writes(name, shard))
            offset += prod(shape)

    def _names(self) -> list[str]:
        first, last = self.mesh.is_first_stage, self.mesh.is_last_stage
        names = [name for name, spec in self.specs.items() if (first and spec.stage == 0) or (last and spec.stage == 1)]
        return [*names, TIED] if last and not first and TIED in self.specs else names

    def _local(self, name: str) -> tuple[Shard, tuple[int, ...]]:
        spec, tp = self.specs[name], self.mesh.model.size
        if spec.dim is None or tp == 1:
            return Shard.whole(spec.shape, name), spec.shape
        shard, local = Shard.split(spec.shape, {spec.dim: self.mesh.model})
        return shard.named(name), local

    def _writes(self, name: str, shard: Shard) -> bool:
        tied_copy = name == TIED and not self.mesh.is_first_stage
        return not tied_copy and ("model" in shard.split_over or self.mesh.model.rank == 0)


def _local_values(whole: torch.Tensor, shard: Shard, shape: tuple[int, ...]) -> torch.Tensor:
    local = torch.full(shape, -7.0)  # what pads a vocabulary may be anything
    shard.real(local).copy_(shard.of(whole))
    return local


def state_by_name(engine: FakeEngine) -> dict[tuple[str, ...], torch.Tensor]:
    """Real values of the fragments of this rank, by kind, name, part and flat start; padding left out."""
    found = {}
    for fragment in engine.fragments():
        values = fragment.tensor.clone()
        if fragment.shard.lengths and fragment.shard.lengths[0] < fragment.local_shape[0]:
            real = fragment.shard.lengths[0] * prod(fragment.local_shape[1:]) - fragment.start
            values = values[: max(0, real)]
        found[fragment.kind, fragment.shard.name, str(fragment.shard.starts), str(fragment.start)] = values
    return found


def mesh_of(layout: ParallelLayout) -> ProcessMesh:
    """The mesh inside a world of ranks."""
    return ProcessMesh.create(layout, torch.device("cpu"))


MODEL = {"d_model": 4, "num_layers": 2, "positions": "rotary", "dropout": 0.1}


def run_state(**changes: object) -> RunState:
    """What a run of the fake engine tells beside its tensors."""
    layout = {"tp": 1, "pp": 1, "dp": 1, "zero_stage": 1}
    values = {"model": MODEL, "layout": layout, "precision": "fp32", "next_sample": 40, "targets": 1234}
    hashes = {"plan_hash": "plan", "tokenizer_hash": "tokenizer", "wandb_id": "abc123"}
    return RunState.model_validate({**values, **hashes, **changes})


def launch(run_dir: Path, generation: int) -> None:
    """Registers a launch, as the tracker does."""
    with (run_dir / "attempts.jsonl").open("a") as file:
        file.write(json.dumps({"attempt": generation, "time": 0.0}) + "\n")


def trained_engine(steps: int, mesh: ProcessMesh | None = None) -> FakeEngine:
    """An engine after some steps, in a world of its own unless a mesh is given."""
    engine = FakeEngine(mesh or ProcessMesh.single())
    for _ in range(steps):
        engine.train_step([micro_batch(engine.step)] if engine.mesh.data.rank == 0 else [])
    return engine


def micro_batch(step: int) -> MicroBatch:
    """A batch that differs from step to step."""
    tokens = torch.arange(6).view(1, 6) + step
    return MicroBatch({"tokens": tokens}, tokens + 1)


def assert_equal_state(actual: FakeEngine, expected: FakeEngine) -> None:
    """Both hold the same real values, bit for bit, and stand at the same step."""
    found, wanted = state_by_name(actual), state_by_name(expected)
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert torch.equal(found[key], values), key
    assert actual.step == expected.step
