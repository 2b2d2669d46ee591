"""Runs whose sequences are shared by ranks: they log what one process logs, and any layout goes on from their checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.runs import STEPS, events, losses, make_data, make_run, register, train_in_rank
from tests.worlds import World

SHARED = {"pp": 1, "ring": 2, "ulysses": 2}
ALONE = {"pp": 1, "ring": 1, "ulysses": 1}


def _assert_alike(run_dir: Path, other: Path) -> None:
    """Every value that was computed, tokens and samples counted once among them."""
    found, expected = losses(run_dir), losses(other)
    assert list(found) == list(expected) == list(range(STEPS + 1))
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-4), step
    assert {"eval/bits_per_byte", "eval/loss_past_middle"} <= set(found[STEPS])


@pytest.fixture
def one_process(tmp_path: Path, world: Callable[[int], World]) -> Path:
    run_dir = make_run(tmp_path / "alone", make_data(tmp_path / "data"), layout=ALONE)
    assert world(1).run(train_in_rank, run_dir, register(run_dir)) == ["finished"]
    return run_dir


def test_a_run_over_shared_sequences_logs_what_one_process_logs(
    tmp_path: Path, one_process: Path, world: Callable[[int], World]
) -> None:
    run_dir = make_run(tmp_path / "shared", tmp_path / "data", layout=SHARED)
    assert world(4).run(train_in_rank, run_dir, register(run_dir)) == ["finished"] * 4
    _assert_alike(run_dir, one_process)


def test_shared_sequences_and_whole_ones_resume_each_other(
    tmp_path: Path, one_process: Path, world: Callable[[int], World]
) -> None:
    run_dir = make_run(tmp_path / "changing", tmp_path / "data", layout=SHARED)
    assert all("Preempted" in end for end in world(4).run(train_in_rank, run_dir, register(run_dir), 2))
    make_run(run_dir, tmp_path / "data", layout=ALONE)
    assert all("Preempted" in end for end in world(1).run(train_in_rank, run_dir, register(run_dir), 2))
    make_run(run_dir, tmp_path / "data", layout=SHARED)
    assert world(4).run(train_in_rank, run_dir, register(run_dir)) == ["finished"] * 4
    assert [event["step"] for event in events(run_dir, "resume")] == [2, 4]
    _assert_alike(run_dir, one_process)
