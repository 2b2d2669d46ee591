"""One rank's gradient is not a number: every rank skips the step, and too many in a row end the run on all of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pretrain.train
from pretrain.checkpoint.format import CheckpointRef
from pretrain.checkpoint.load import load_weights
from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.protocol import StepResult
from tests.faults.runs import STEPS, events, losses, make_data, make_run, register, train_in_rank
from tests.worlds import World

LAYOUTS = [{"pp": 2}, {"pp": 1, "dp": 2}, {"pp": 1, "tp": 2}]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def train_with_poison(run_dir: Path, generation: int, poisoned: set[int]) -> str:
    """Runs a rank; in the poisoned steps (counted from 1) the last rank's first gradient is not a number."""
    build_engine = pretrain.train.build_engine

    def build_poisoned(*arguments: Any) -> Any:
        engine: Any = build_engine(*arguments)
        parameter = next(engine._engine.module.parameters())
        train_step = engine.train_step

        def step(microbatches: Sequence[MicroBatch]) -> StepResult:
            if dist.get_rank() != dist.get_world_size() - 1 or engine.step + 1 not in poisoned:
                return train_step(microbatches)
            hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("nan")))
            try:
                return train_step(microbatches)
            finally:
                hook.remove()

        engine.train_step = step
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain.train, "build_engine", build_poisoned)
        return train_in_rank(run_dir, generation)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_all_ranks_skip_the_step_and_the_weights_stay_bit_equal(
    world: World, data: Path, tmp_path: Path, layout: dict[str, int]
) -> None:
    run_dir = make_run(tmp_path / "run", data, layout=layout, checkpoint={"interval_steps": 1, "keep": 9})
    ends = world.run(train_with_poison, run_dir, register(run_dir), {3, 5})
    assert ends == ["finished", "finished"]
    assert [event["step"] for event in events(run_dir, "skipped_step")] == [3, 5]
    assert losses(run_dir)[STEPS]["train/skipped_steps"] == 2
    weights = {step: load_weights(CheckpointRef.at(run_dir, step, 1)) for step in range(1, STEPS + 1)}
    for step in range(2, STEPS + 1):
        same = all(torch.equal(weights[step][name], weights[step - 1][name]) for name in weights[step])
        assert same == (step in (3, 5)), step


def test_the_run_ends_on_every_rank_after_too_many_in_a_row_and_can_go_on(
    world: World, data: Path, tmp_path: Path
) -> None:
    run_dir = make_run(tmp_path / "run", data, optimizer={"max_skipped_in_a_row": 2})
    ends = world.run(train_with_poison, run_dir, register(run_dir), {3, 4})
    assert ends == [ends[0]] * 2
    assert ends[0].startswith("RankFault: step 4: the gradient was not finite in 2 steps in a row")
    assert world.run(train_in_rank, run_dir, register(run_dir)) == ["finished", "finished"]
    assert [event["step"] for event in events(run_dir, "resume")] == [2]
