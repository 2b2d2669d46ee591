"""What the training loop relies on, held against both engines and every ZeRO stage by one suite (engine/protocol.py)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist

from pretrain.data.micro_batch import IGNORED, MicroBatch, RowSources
from pretrain.engine.protocol import Engine, EvaluationResult, Fragment, StateKind, StepResult
from pretrain.engine.settings import LossSettings
from pretrain.parallel.layout import ParallelLayout
from pretrain.parity.reference_dropout import counter_dropout
from tests.layouts.cases import CASES, LENGTH, Setup, global_batch, micro_batches
from tests.layouts.conftest import Trace
from tests.layouts.parity import local_part, whole_tensors
from tests.layouts.recording import copies, start_engine
from tests.layouts.reference import ReferenceModel, token_losses
from tests.worlds import World

CASE = "transformer-tied"
"""Tied over both ends of the pipeline, with dropout, and an encoder whose memory crosses a stage."""
SETUPS = [
    Setup(ParallelLayout(dp=2), zero_stage=0),
    Setup(ParallelLayout(dp=2), zero_stage=1),
    Setup(ParallelLayout(dp=2), zero_stage=2),
    Setup(ParallelLayout(dp=2), zero_stage=3),
    Setup(ParallelLayout(tp=2)),
    Setup(ParallelLayout(pp=2)),
    Setup(ParallelLayout(pp=2, tp=2)),
    Setup(ParallelLayout(pp=2, dp=2)),
    Setup(ParallelLayout(pp=2), more=("layout.pipeline_schedule=zb-h1",)),
    Setup(ParallelLayout(pp=2), zero_stage=1, more=("layout.offload=optimizer",)),
    Setup(ParallelLayout(dp=2), zero_stage=3, more=("layout.offload=optimizer_and_parameters",)),
    Setup(ParallelLayout(ring=2, ulysses=2)),
]
KINDS: tuple[StateKind, ...] = ("weight", "exp_avg", "exp_avg_sq")
State = list[Fragment]


@dataclass(frozen=True)
class Life:
    """What one rank saw in the life of an engine; compared in the test process."""

    num_parameters: int
    fresh: State
    """Before the first step."""
    untouched: list[StepResult]
    """Steps 0 to 3."""
    saved: State
    """After step 1."""
    final: State
    evaluations: list[EvaluationResult]
    """Of the same batches after step 1: twice in a row, then micro-batch by micro-batch."""
    after_evaluation: State
    evaluated: list[StepResult]
    """Steps 2 and 3 after the evaluations."""
    rolled_back: list[StepResult]
    """Steps 2 and 3 again, after the saved state was put back into the same engine."""
    restored: list[StepResult]
    """Steps 2 and 3 of a new engine that was given the saved state."""
    restored_final: State
    counts: tuple[int, int]
    """step and skipped_steps of the new engine at the end."""


def _state(engine: Engine) -> State:
    return [fragment for kind in KINDS for fragment in copies(engine, kind)]


def _load(engine: Engine, state: State, step: int, skipped: int = 0) -> None:
    """Puts a state into an engine, over garbage, so that nothing can be right by chance."""
    saved = {(f.kind, f.shard.name, f.start): f.tensor for f in state}
    for fragment in engine.fragments():
        fragment.tensor.fill_(7.0)
        fragment.tensor.copy_(saved[fragment.kind, fragment.shard.name, fragment.start])
    engine.finish_load(step, skipped)


NUM_SOURCES = 3
"""One more than the batches have rows of."""


def _by_source(batch: MicroBatch) -> MicroBatch:
    """Every third sample is of source 1, the others are of source 0: both in most micro-batches."""
    numbers = (batch.inputs["sample"] % 3 == 1).long()
    return replace(batch, sources=RowSources(numbers, NUM_SOURCES))


def _train(engine: Engine, setup: Setup, steps: range) -> list[StepResult]:
    """Steps whose losses are told by source, but for the last."""
    results, rank = [], engine.mesh.batch.rank
    for step in steps:
        batches = micro_batches(CASES[CASE], step, setup.layout, rank)
        results.append(engine.train_step(batches if step == 3 else [_by_source(batch) for batch in batches]))
    return results


def live(setup: Setup) -> Life:
    """One rank's part in the life of three engines."""
    engine = start_engine(CASE, setup)
    fresh = _state(engine)
    untouched = _train(engine, setup, range(2))
    saved = _state(engine)
    untouched += _train(engine, setup, range(2, 4))
    final = _state(engine)
    _load(engine, saved, 2)
    rolled_back = _train(engine, setup, range(2, 4))

    engine = start_engine(CASE, setup)
    _train(engine, setup, range(2))
    batches = micro_batches(CASES[CASE], 0, setup.layout, engine.mesh.batch.rank)
    evaluations = [engine.evaluate(batches) for _ in range(2)] + [engine.evaluate([batch]) for batch in batches]
    after_evaluation = _state(engine)
    evaluated = _train(engine, setup, range(2, 4))

    engine = start_engine(CASE, setup)
    _load(engine, saved, 2)
    restored = _train(engine, setup, range(2, 4))
    return Life(
        num_parameters=engine.num_parameters,
        fresh=fresh,
        untouched=untouched,
        saved=saved,
        final=final,
        evaluations=evaluations,
        after_evaluation=after_evaluation,
        evaluated=evaluated,
        rolled_back=rolled_back,
        restored=restored,
        restored_final=_state(engine),
        counts=(engine.step, engine.skipped_steps),
    )


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: setup.name)
def lives(request: pytest.FixtureRequest, world: Callable[[int], World]) -> Iterator[list[Life]]:
    setup: Setup = request.param
    yield world(setup.layout.world_size).run(live, setup)


def _all(lives: list[Life], state: str, kind: StateKind) -> State:
    return [f for life in lives for f in getattr(life, state) if f.kind == kind]


def _assert_same(a: State, b: State) -> None:
    assert [replace(f, tensor=None) for f in a] == [replace(f, tensor=None) for f in b]  # type: ignore[arg-type]
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x.tensor, y.tensor), f"{x.kind} of {x.shard.name}"


def test_every_rank_reports_the_same_results(lives: list[Life]):
    assert all(life.untouched == lives[0].untouched for life in lives)
    for life in lives:
        for mine, first in zip(life.evaluations, lives[0].evaluations, strict=True):
            assert torch.equal(mine.loss_by_position, first.loss_by_position)
            assert torch.equal(mine.targets_by_position, first.targets_by_position)


def test_the_training_loss_of_a_source_is_that_of_its_rows_in_every_layout(lives: list[Life]):
    case = CASES[CASE]
    weights = whole_tensors(_all(lives, "fresh", "weight"))
    batch = global_batch(case, 0)
    model = ReferenceModel(case.config(SETUPS[0]).model, counter_dropout(case.seed))
    logits = model.logits({name: weight.double() for name, weight in weights.items()}, batch)
    of_second = batch["sample"] % 3 == 1
    result = lives[0].untouched[0]
    assert len(result.loss_by_source) == NUM_SOURCES and result.loss_by_source[2] is None
    for loss, rows in zip(result.loss_by_source, (~of_second, of_second), strict=False):
        total, _, _ = token_losses(logits[rows], batch["labels"][rows], LossSettings())
        assert loss == pytest.approx(float(total) / int((batch["labels"][rows] != IGNORED).sum()), rel=1e-5)
    assert lives[0].untouched[3].loss_by_source == ()


@pytest.mark.parametrize("kind", KINDS)
def test_each_element_of_the_state_is_written_by_exactly_one_rank(
    lives: list[Life], kind: StateKind, trace: Callable[[str], Trace]
):
    wholes = whole_tensors(_all(lives, "saved", kind))
    expected = trace(CASE).initial
    assert {name: w.shape for name, w in wholes.items()} == {name: w.shape for name, w in expected.items()}
    assert all(life.num_parameters == sum(w.numel() for w in expected.values()) for life in lives)


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_and_tied_copies_agree_to_the_last_bit(lives: list[Life], kind: StateKind):
    wholes = whole_tensors(_all(lives, "final", kind))
    for piece in _all(lives, "final", kind):
        assert torch.equal(piece.tensor, local_part(wholes[piece.shard.name], piece)), piece.shard.name


def test_moments_are_zero_before_the_first_step(lives: list[Life]):
    moments = _all(lives, "fresh", "exp_avg") + _all(lives, "fresh", "exp_avg_sq")
    assert len(moments) == 2 * len(_all(lives, "fresh", "weight"))
    assert not any(bool(moment.tensor.any()) for moment in moments)


def test_evaluation_leaves_state_and_later_steps_as_they_were(lives: list[Life]):
    for life in lives:
        _assert_same(life.after_evaluation, life.saved)
        assert life.evaluated == life.untouched[2:]


def test_evaluation_is_the_plain_cross_entropy_without_dropout(lives: list[Life]):
    case = CASES[CASE]
    weights = whole_tensors(_all(lives, "saved", "weight"))
    batch = global_batch(case, 0)
    model = ReferenceModel(case.config(SETUPS[0]).model, dropout=lambda *_: torch.ones(()))
    logits = model.logits({name: weight.double() for name, weight in weights.items()}, batch)
    for position in range(LENGTH):
        column = slice(position, position + 1)
        expected, _, _ = token_losses(logits[:, column], batch["labels"][:, column], LossSettings())
        for evaluation in lives[0].evaluations[:2]:
            assert float(evaluation.loss_by_position[position]) == pytest.approx(float(expected), rel=1e-5)
            assert int(evaluation.targets_by_position[position]) == int((batch["labels"][:, position] >= 0).sum())


def test_evaluations_of_parts_add_up_to_that_of_the_whole(lives: list[Life]):
    whole, _, *parts = lives[0].evaluations
    total = torch.stack([part.loss_by_position for part in parts]).sum(0)
    assert torch.allclose(total, whole.loss_by_position, rtol=1e-6)


def test_a_restored_engine_goes_on_bit_identically(lives: list[Life]):
    for life in lives:
        assert life.restored == life.untouched[2:]
        assert life.counts == (4, 0)
        _assert_same(life.restored_final, life.final)


def test_an_engine_can_be_rolled_back(lives: list[Life]):
    for life in lives:
        assert life.rolled_back == life.untouched[2:]


def skip_a_step(setup: Setup, poisoned_rank: int) -> tuple[list[StepResult], State, State, State, int]:
    """Step 0 with a NaN in one gradient of one rank, then step 1 without."""
    engine = start_engine(CASE, setup)
    before = _state(engine)
    handles = []
    if dist.get_rank() == poisoned_rank:
        parameters = engine._engine.module.parameters()  # type: ignore[attr-defined]
        handles.append(next(iter(parameters)).register_hook(lambda gradient: gradient * math.nan))
    results = _train(engine, setup, range(1))
    after = _state(engine)
    for handle in handles:
        handle.remove()
    results += _train(engine, setup, range(1, 2))
    return results, before, after, _state(engine), engine.skipped_steps


@pytest.mark.parametrize("poisoned_rank", [0, -1], ids=["first_rank", "last_rank"])
@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_a_nan_gradient_on_one_rank_makes_all_ranks_skip_the_step(
    setup: Setup, poisoned_rank: int, world: Callable[[int], World], trace: Callable[[str], Trace]
):
    size = setup.layout.world_size
    ranks = world(size).run(skip_a_step, setup, poisoned_rank % size)
    expected_lr = [step.lr for step in trace(CASE).reference.steps[:2]]
    for results, before, after, trained, skipped_steps in ranks:
        assert [result.skipped for result in results] == [True, False]
        assert not math.isfinite(results[0].grad_norm)
        assert math.isfinite(results[1].grad_norm)
        assert math.isfinite(results[0].loss)
        assert skipped_steps == 1
        _assert_same(after, before)
        assert not any(
            torch.equal(a.tensor, b.tensor) for a, b in zip(after, trained, strict=True) if a.kind == "exp_avg"
        )
        assert [result.lr for result in results] == pytest.approx(expected_lr, rel=1e-12)


def resume_behind_a_skip(setup: Setup) -> tuple[list[StepResult], State, list[StepResult], State]:
    """Steps 0 (skipped) to 2 in one engine, and step 2 in another that was given the state behind step 1."""
    engine = start_engine(CASE, setup)
    parameter = next(iter(engine._engine.module.parameters()))  # type: ignore[attr-defined]
    handle = parameter.register_hook(lambda gradient: gradient * math.nan)
    _train(engine, setup, range(1))
    handle.remove()
    _train(engine, setup, range(1, 2))
    saved = _state(engine)
    straight = _train(engine, setup, range(2, 3))
    other = start_engine(CASE, setup)
    _load(other, saved, 2, skipped=1)
    return straight, _state(engine), _train(other, setup, range(2, 3)), _state(other)


@pytest.mark.parametrize("setup", SETUPS[:6], ids=lambda setup: setup.name)
def test_a_run_with_a_skipped_step_is_restored_with_adams_own_count(setup: Setup, world: Callable[[int], World]):
    for straight, final, restored, restored_final in world(setup.layout.world_size).run(resume_behind_a_skip, setup):
        assert restored == straight
        _assert_same(restored_final, final)


def step_without_targets(setup: Setup) -> tuple[StepResult, State, State]:
    """A step whose every label is ignored."""
    engine = start_engine(CASE, setup)
    before = _state(engine)
    batches = micro_batches(CASES[CASE], 0, setup.layout, engine.mesh.batch.rank)
    result = engine.train_step([replace(batch, labels=torch.full_like(batch.labels, IGNORED)) for batch in batches])
    return result, before, _state(engine)


@pytest.mark.parametrize("setup", [SETUPS[1], SETUPS[5]], ids=lambda setup: setup.name)
def test_a_step_without_targets_has_no_gradient(setup: Setup, world: Callable[[int], World]):
    for result, before, after in world(setup.layout.world_size).run(step_without_targets, setup):
        assert (result.loss, result.targets, result.grad_norm, result.skipped) == (0.0, 0, 0.0, False)
        moments = [f for f in after if f.kind != "weight"]
        assert not any(bool(f.tensor.any()) for f in moments)
        for old, new in zip(before, after, strict=True):
            assert torch.allclose(old.tensor, new.tensor, rtol=1e-3), "only the decay of weights may act"
