"""A checkpoint has no layout: whatever wrote it, any layout loads it bit for bit and goes on as if nothing had happened."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint.format import CheckpointRef
from pretrain.checkpoint.load import find_checkpoint, restore
from pretrain.checkpoint.save import save
from pretrain.engine.protocol import Fragment, StateKind, StepResult
from pretrain.parallel.layout import ParallelLayout
from tests.checkpoint.fake_engine import launch, run_state
from tests.layouts.cases import CASES, ONE, Setup, micro_batches
from tests.layouts.conftest import Trace
from tests.layouts.parity import BOUNDS, whole_tensors
from tests.layouts.recording import copies, start_engine, unsettle
from tests.worlds import World

KINDS: tuple[StateKind, ...] = ("weight", "exp_avg", "exp_avg_sq", "buffer")
WRITER = Setup(ParallelLayout(pp=2, tp=2))
READERS = [
    ONE,
    Setup(ParallelLayout(pp=4)),
    Setup(ParallelLayout(tp=2)),
    Setup(ParallelLayout(dp=4), zero_stage=3),
    Setup(ParallelLayout(dp=2), zero_stage=2),
    Setup(ParallelLayout(dp=2, tp=2), zero_stage=0),
]


@dataclass(frozen=True)
class Leg:
    """What one rank saw of one launch: the state as it was loaded, its steps, and the state that it saved."""

    loaded: list[Fragment]
    steps: list[StepResult]
    saved: list[Fragment]


def _unexpected(ref: CheckpointRef, damage: list[str]) -> None:
    raise AssertionError(f"{ref}: {damage}")


def _state(engine: object) -> list[Fragment]:
    return [fragment for kind in KINDS for fragment in copies(engine, kind)]  # type: ignore[arg-type]


def run_leg(case_name: str, setup: Setup, run_dir: Path, generation: int, first: int, last: int) -> Leg:
    """One launch: goes on from the newest checkpoint at step `first`, trains to `last`, saves."""
    engine = start_engine(case_name, setup)
    if first:
        ref = find_checkpoint(run_dir, engine.mesh, _unexpected)
        assert ref is not None
        assert ref.step == first
        restore(engine, ref)
    else:
        unsettle(engine)
    loaded = _state(engine)
    batches = [
        micro_batches(CASES[case_name], step, setup.layout, engine.mesh.batch.rank) for step in range(first, last)
    ]
    steps = [engine.train_step(batch) for batch in batches]
    save(engine, run_dir, generation, run_state())
    return Leg(loaded, steps, _state(engine))


def _wholes(legs: list[Leg], name: str) -> dict[str, dict[str, torch.Tensor]]:
    return {kind: whole_tensors(f for leg in legs for f in getattr(leg, name) if f.kind == kind) for kind in KINDS}


def _assert_goes_on(
    case_name: str,
    setups: list[Setup],
    run_dir: Path,
    world: Callable[[int], World],
    trace: Callable[[str], Trace],
) -> None:
    """Two steps in the first layout, then one in each of the others."""
    expected = trace(case_name).reference.steps
    before: dict[str, dict[str, torch.Tensor]] | None = None
    step = 0
    for generation, setup in enumerate(setups, start=1):
        launch(run_dir, generation)
        last = step + (2 if step == 0 else 1)
        legs = world(setup.layout.world_size).run(run_leg, case_name, setup, run_dir, generation, step, last)
        if before is not None:
            for kind, wholes in _wholes(legs, "loaded").items():
                assert wholes.keys() == before[kind].keys()
                for name, whole in wholes.items():
                    assert torch.equal(whole, before[kind][name]), (
                        f"{kind} of {name} changed on its way to {setup.name}"
                    )
        for result, wanted in zip(legs[0].steps, expected[step:last], strict=True):
            assert result.loss == pytest.approx(wanted.loss, rel=BOUNDS["loss"])
            assert result.grad_norm == pytest.approx(wanted.grad_norm, rel=BOUNDS["grad_norm"])
            assert result.lr == pytest.approx(wanted.lr, rel=BOUNDS["lr"])
        before, step = _wholes(legs, "saved"), last


@pytest.mark.parametrize("reader", READERS, ids=lambda setup: setup.name)
@pytest.mark.parametrize("case_name", ["llama-untied", "transformer-tied"])
def test_a_run_changes_its_layout_there_and_back_again(
    case_name: str, reader: Setup, tmp_path: Path, world: Callable[[int], World], trace: Callable[[str], Trace]
):
    _assert_goes_on(case_name, [WRITER, reader, WRITER, reader], tmp_path, world, trace)


@pytest.mark.parametrize(
    ("case_name", "reader"),
    [
        ("moe-shared", WRITER),
        ("moe-bias", Setup(ParallelLayout(dp=2), zero_stage=3)),
        ("moe-transformer", Setup(ParallelLayout(dp=4, ep=4), zero_stage=2)),
    ],
)
def test_experts_change_their_ranks_there_and_back_again(
    case_name: str, reader: Setup, tmp_path: Path, world: Callable[[int], World], trace: Callable[[str], Trace]
):
    tensors, stages = Setup(ParallelLayout(dp=2, ep=2, tp=2)), Setup(ParallelLayout(dp=2, ep=2, pp=2))
    _assert_goes_on(case_name, [tensors, reader, stages, reader], tmp_path, world, trace)
