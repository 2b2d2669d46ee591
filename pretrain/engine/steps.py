"""What both engines do around DeepSpeed: parts and weights of micro-batches before, global sums after."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.engine.objective import LossSums
from pretrain.engine.protocol import EvaluationResult, ExpertLoad, StepResult
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import SequenceSplit

_WHOLE_FIELDS = ("documents", "source_documents", "sample")
"""What every context rank needs of whole sequences."""


def context_part(batch: MicroBatch, sequence: SequenceSplit) -> MicroBatch:
    """What a rank of a context group trains on of whole sequences: its positions, and the documents of all of them."""
    if sequence.parts == 1:
        return batch
    fields = batch.inputs.items()
    inputs = {name: whole if name in _WHOLE_FIELDS else sequence.take(whole) for name, whole in fields}
    return MicroBatch(inputs, sequence.take(batch.labels), batch.sources)


def source_numbers(microbatches: Sequence[MicroBatch]) -> torch.Tensor | None:
    """(rows, sources) bool: which source each row of the step is from; None where rows are not told apart."""
    sources = [batch.sources for batch in microbatches if batch.sources is not None]
    if not sources:
        return None
    return torch.cat([each.numbers for each in sources])[:, None] == torch.arange(sources[0].count)


def count_targets(
    microbatches: Sequence[MicroBatch], mesh: ProcessMesh, row_sources: torch.Tensor | None
) -> tuple[int, ...]:
    """Valid targets of the global batch by source, or of all: one integer all-reduce over the data axis."""
    if row_sources is None:
        mine = torch.tensor([sum(batch.targets for batch in microbatches)])
    else:
        rows = torch.cat([(batch.labels != IGNORED).sum(1) for batch in microbatches])
        mine = (rows[:, None] * row_sources).sum(0)
    count = mine.to(mesh.device)
    if mesh.data.group is not None:
        dist.all_reduce(count, group=mesh.data.group)
    return tuple(count.tolist())


def micro_batch_weight(targets: int, micro_batches: int, mesh: ProcessMesh) -> torch.Tensor:
    """Weight of a micro-batch's summed loss, such that DeepSpeed's averages give the mean over the global targets."""
    return torch.tensor(micro_batches * mesh.data.size / max(targets, 1), dtype=torch.float32, device=mesh.device)


def _share(values: torch.Tensor, mesh: ProcessMesh) -> torch.Tensor:
    """Sums over the data axis on the last stage, then gives the sums to every stage."""
    if mesh.data.group is not None and mesh.is_last_stage:
        dist.all_reduce(values, group=mesh.data.group)
    if mesh.pipe.group is not None:
        dist.broadcast(values, src=mesh.pipe.ranks[-1], group=mesh.pipe.group)
    return values


@dataclass(frozen=True)
class GlobalBatch:
    """What a step's sums are divided by, and the layers with experts whose loads it counts."""

    targets: tuple[int, ...]
    """By source, or of all."""
    sequences: int
    row_sources: torch.Tensor | None
    """(rows of this rank, sources) bool; see `source_numbers`."""
    expert_layers: tuple[str, ...] = ()
    num_experts: int = 0


def step_result(
    sums: LossSums, mesh: ProcessMesh, batch: GlobalBatch, *, grad_norm: float, lr: float, skipped: bool
) -> StepResult:
    """The result of a step, the same on every rank."""
    layers, targets = batch.expert_layers, sum(batch.targets)
    num_sources = 0 if batch.row_sources is None else len(batch.targets)
    num_loads = len(layers) * (batch.num_experts + 1)
    values = torch.zeros(4 + num_sources + num_loads, dtype=torch.float64, device=mesh.device)
    if sums.by_position is not None and sums.objective is not None and sums.z_loss is not None:
        values[:3] = torch.stack([sums.by_position.sum(), sums.objective, sums.z_loss])
    if sums.auxiliary is not None:
        values[3] = sums.auxiliary
    if sums.by_row and batch.row_sources is not None:
        values[4 : 4 + num_sources] = _by_source(torch.cat(sums.by_row), batch.row_sources)
    if sums.loads is not None:
        values[4 + num_sources :] = sums.loads.flatten()
    losses, by_source, loads = _share(values, mesh).cpu().tensor_split([4, 4 + num_sources])
    loss, objective, z_loss = (losses[:3] / max(targets, 1)).tolist()
    auxiliary = float(losses[3]) / batch.sequences
    load = _expert_load(layers, loads.long().view(len(layers), -1)) if layers else None
    return StepResult(
        loss,
        objective + z_loss + auxiliary,
        z_loss,
        grad_norm,
        lr,
        targets,
        skipped,
        auxiliary=auxiliary,
        expert_load=load,
        loss_by_source=tuple(
            total / count if count else None for total, count in zip(by_source.tolist(), batch.targets, strict=False)
        ),
    )


def _by_source(rows: torch.Tensor, row_sources: torch.Tensor) -> torch.Tensor:
    """Sums (sources,) of (rows,) values. No product with 0 or 1: a source is not to blame for a NaN in another's row."""
    return torch.where(row_sources.to(rows.device, non_blocking=True), rows[:, None], 0.0).sum(0)


def _expert_load(layers: tuple[str, ...], loads: torch.Tensor) -> ExpertLoad:
    """From (M, E + 1) int64 of the global batch."""
    return ExpertLoad(layers, tuple(map(tuple, loads[:, :-1].tolist())), tuple(loads[:, -1].tolist()))


def evaluation_result(
    sums: LossSums, mesh: ProcessMesh, positions: torch.Tensor, sequence_length: int
) -> EvaluationResult:
    """The result of an evaluation, the same on every rank; positions (C,) are those of the rank's sums."""
    values = torch.zeros(2, sequence_length, dtype=torch.float64, device=mesh.device)
    if sums.by_position is not None and sums.targets_by_position is not None:
        values[:, positions.to(mesh.device)] = torch.stack([sums.by_position, sums.targets_by_position.double()])
    losses, targets = _share(values, mesh).cpu()
    return EvaluationResult(losses, targets.long())
