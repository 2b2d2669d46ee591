"""A real rank is killed at a seeded random moment; the launcher starts all ranks again, and the losses are those of a twin."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.torchrun import Launch, run
from pretrain.config import RunConfig, read_resolved
from pretrain.files import read_json_lines
from pretrain.resolve import World
from tests.faults.runs import STEPS, losses, make_data, make_run

RANK_COMMAND = (sys.executable, "-m", "tests.faults.doomed_rank")

TWO_RANKS = {"pp": 1, "dp": 2, "tp": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def config_of(folder: Path, data: Path, layout: dict[str, int]) -> RunConfig:
    """A run that was not launched; only its config is there."""
    return read_resolved(make_run(folder, data, layout=layout, evaluation={"interval_steps": None, "baseline": "none"}))


def computed(run_dir: Path) -> dict[int, Any]:
    """What the steps computed; that replayed ones gave the very same is checked on the way."""
    return {step: values for step, values in losses(run_dir).items() if step}


@pytest.fixture(scope="module")
def twin(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What a run on two ranks computes that nothing happens to."""
    config = config_of(tmp_path_factory.mktemp("runs") / "twin", data, TWO_RANKS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        run(config, Launch(World(2)))
    return computed(config.run_dir)


def killed_once(
    config: RunConfig, phase: str, step: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """Trains a run with one restart, while a rank dies; which one, and the functions that it was in."""
    ranks, chance = config.parallel_layout.world_size, random.Random(f"{phase} {step}")
    victim = chance.randrange(ranks)
    monkeypatch.setenv("DOOM", f"{victim}:{phase}:{step}:{chance.randrange(calls)}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert run(config, Launch(World(ranks), rank_command=RANK_COMMAND, max_restarts=1)).by_this_launch
    return victim, (config.run_dir / "died-in").read_text().split()


def assert_named(run_dir: Path, victim: int, told: str) -> None:
    assert told.count("restart 1 of 1") == 1 and f"restart 1 of 1: rank {victim} was killed by SIGKILL" in told
    (restart,) = (row for row in read_json_lines(run_dir / "events.jsonl") if row["kind"] == "restart")
    assert (restart["rank"], restart["generation"], restart["step"]) == (victim, 1, 2)


def test_a_rank_of_two_that_is_killed_while_it_saves_is_named_and_the_losses_are_the_twins(
    data: Path,
    tmp_path: Path,
    twin: dict[int, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = config_of(tmp_path / "killed", data, TWO_RANKS)
    victim, died_in = killed_once(config, "save", 2, 60, monkeypatch)
    assert "save" in died_in
    assert_named(config.run_dir, victim, capfd.readouterr().err)
    assert computed(config.run_dir) == twin


def test_a_rank_of_four_that_is_killed_within_a_step_is_named_and_the_losses_are_the_twins(
    data: Path,
    tmp_path: Path,
    twin: dict[int, Any],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = config_of(tmp_path / "killed", data, {"pp": 2, "dp": 2, "tp": 1})
    victim, died_in = killed_once(config, "step", 4, 600, monkeypatch)
    assert "train_step" in died_in
    assert_named(config.run_dir, victim, capfd.readouterr().err)
    again = computed(config.run_dir)
    assert [*again] == [*range(1, STEPS + 1)]
    for step, values in again.items():
        for name in ("train/loss", "train/grad_norm", "train/lr", "train/tokens", "train/samples"):
            assert values[name] == pytest.approx(twin[step][name], rel=2e-5), (step, name)
