"""What saves memory against the same layout without it: to the bit where nothing but the place of a computation changes."""

from collections.abc import Callable

import pytest
import torch

from pretrain.engine.protocol import EvaluationResult, StepResult
from pretrain.parallel.layout import ParallelLayout
from tests.layouts.cases import CASES, Setup, micro_batches
from tests.layouts.recording import copies, start_engine
from tests.worlds import World

_STEPS = 3


def _train(case_name: str, setup: Setup) -> tuple[list[StepResult], list[torch.Tensor]]:
    engine = start_engine(case_name, setup)
    batches = [micro_batches(CASES[case_name], step, setup.layout, engine.mesh.batch.rank) for step in range(_STEPS)]
    return [engine.train_step(batch) for batch in batches], [piece.tensor for piece in copies(engine, "weight")]


def _evaluate(case_name: str, setup: Setup) -> EvaluationResult:
    engine = start_engine(case_name, setup)
    return engine.evaluate(micro_batches(CASES[case_name], 0, setup.layout, engine.mesh.batch.rank))


@pytest.mark.parametrize(
    ("case_name", "setup"),
    [
        ("llama-tied", Setup(ParallelLayout(), more=("train.precision=bf16",))),
        ("transformer-tied", Setup(ParallelLayout(tp=2), more=("train.precision=bf16",))),
        ("transformer-tied", Setup(ParallelLayout(tp=2, pp=2))),
    ],
)
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recompute_changes_no_bit(case_name: str, setup: Setup, mode: str, world: Callable[[int], World]) -> None:
    again = Setup(setup.layout, setup.zero_stage, (*setup.more, f"train.recompute={mode}"))
    ranks = world(setup.layout.world_size)
    plain, repeated = ranks.run(_train, case_name, setup), ranks.run(_train, case_name, again)
    for (steps, weights), (same_steps, same_weights) in zip(plain, repeated, strict=True):
        assert same_steps == steps
        assert all(torch.equal(a, b) for a, b in zip(weights, same_weights, strict=True))


@pytest.mark.parametrize(
    ("case_name", "layout"),
    [("gpt3-untied", ParallelLayout(tp=2)), ("transformer-tied", ParallelLayout(tp=2, pp=2))],
)
def test_an_evaluation_in_tiles_is_the_same(
    case_name: str, layout: ParallelLayout, world: Callable[[int], World]
) -> None:
    tiles = ("train.loss_tile_tokens=7", "train.feed_forward_tile_tokens=5")
    for plain, tiled in zip(
        world(layout.world_size).run(_evaluate, case_name, Setup(layout)),
        world(layout.world_size).run(_evaluate, case_name, Setup(layout, more=tiles)),
        strict=True,
    ):
        assert torch.equal(tiled.targets_by_position, plain.targets_by_position)
        torch.testing.assert_close(tiled.loss_by_position, plain.loss_by_position, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case_name", ["llama-untied", "gpt3-tied"])
def test_bf16_tiles_train_as_well_as_whole_logits(case_name: str, world: Callable[[int], World]) -> None:
    """Both are bf16's distance from fp32 away, and not farther."""
    tiles = ("train.loss_tile_tokens=7", "train.feed_forward_tile_tokens=5")
    settings = ((), ("train.precision=bf16",), ("train.precision=bf16", *tiles))
    exact, whole, tiled = (
        world(1).run(_train, case_name, Setup(ParallelLayout(), more=more))[0][0] for more in settings
    )
    for step in range(_STEPS):
        assert tiled[step].loss == pytest.approx(exact[step].loss, rel=4e-3)
        assert tiled[step].grad_norm == pytest.approx(exact[step].grad_norm, rel=2e-2)
        assert whole[step].grad_norm == pytest.approx(exact[step].grad_norm, rel=2e-2)
