"""Ranks that are started again in place, on one node; the launcher runs in the test's own process."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cli import exit_code_of
from launch.endings import Cause, Faults, may_restart
from launch.ranks import Ended
from launch.torchrun import Launch, run
from pretrain.config import load_config
from pretrain.errors import ConfigError, Preempted, PretrainError, RankFault
from pretrain.files import read_json_lines
from pretrain.resolve import World

RANK_COMMAND = (sys.executable, str(Path(__file__).with_name("ranks.py")))

Launched = Callable[[str, int], tuple[int, str]]


@pytest.fixture
def launch(config_file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Launched:
    """Runs two ranks of a mode with so many restarts; exit code and stderr."""

    def launched(mode: str, max_restarts: int) -> tuple[int, str]:
        monkeypatch.setenv("FAKE_RANK", mode)
        way = Launch(World(2), rank_command=RANK_COMMAND, again="pretrain train AGAIN", max_restarts=max_restarts)
        code = exit_code_of(lambda: run(load_config(config_file), way) and None)
        return code, capfd.readouterr().err

    return launched


def events(tmp_path: Path, kind: str) -> list[dict]:
    return [row for row in read_json_lines(tmp_path / "run/events.jsonl") if row["kind"] == kind]


def test_ranks_are_started_again_after_a_kill_and_the_culprit_is_named(launch: Launched, tmp_path: Path) -> None:
    code, err = launch("kill-until:2", 1)
    assert code == 0
    assert err.count("\n") == 1 and err.startswith("restart 1 of 1: rank 1 was killed by SIGKILL")
    assert "gen-1/rank-1.log; going on from the start: there is no checkpoint yet" in err
    (restart,) = events(tmp_path, "restart")
    told = {name: restart[name] for name in ("attempt", "generation", "rank", "restarts", "step")}
    assert told == {"attempt": 1, "generation": 1, "rank": 1, "restarts": 1, "step": None}
    assert restart["message"] == err.strip() and restart["node"]
    rows = read_json_lines(tmp_path / "run/attempts.jsonl")
    assert [row["generation"] for row in rows] == [1, 2]
    last = read_json_lines(tmp_path / "run/events.jsonl")[-1]
    assert (last["kind"], last["exit_code"], last["rank"], last["generation"]) == ("launch_ended", 0, None, 2)


def test_faults_in_a_row_end_the_launch_at_the_limit(launch: Launched, tmp_path: Path) -> None:
    code, err = launch("kill-until:9", 1)
    assert code == 70 and err.count("restart 1 of 1") == 1 and "error: rank 1 was killed by SIGKILL" in err
    assert len(read_json_lines(tmp_path / "run/attempts.jsonl")) == 2
    (ended,) = events(tmp_path, "launch_ended")
    assert (ended["exit_code"], ended["rank"], ended["generation"]) == (70, 1, 2)
    assert "SIGKILL" in ended["message"]


def test_a_new_checkpoint_sets_the_count_of_faults_back(launch: Launched, tmp_path: Path) -> None:
    code, err = launch("save-and-kill-until:4", 1)
    assert code == 0 and err.count("restart 1 of 1") == 3
    assert [row["step"] for row in events(tmp_path, "restart")] == [1, 2, 3]
    seen = [row["checkpoint"] and row["checkpoint"]["step"] for row in read_json_lines(tmp_path / "run/attempts.jsonl")]
    assert seen == [None, 1, 2, 3]


@pytest.mark.parametrize(
    ("steps", "counts"),
    [([None, None, None], [1, 2, 3]), ([5, 5, 7, 7], [1, 2, 1, 2]), ([None, 3, 3], [1, 1, 2])],
)
def test_faults_are_counted_from_the_last_new_checkpoint_on(steps: list[int | None], counts: list[int]) -> None:
    faults, found = Faults(0, None), []
    for step in steps:
        faults = faults.one_more(step)
        found.append(faults.count)
    assert found == counts
    assert Faults(0, 5).one_more(5).count == 1, "what was there at the start is no new one"


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [(RankFault, 2, True), (RankFault, 3, False), (ConfigError, 1, False), (Preempted, 1, False)],
)
def test_only_faults_restart_and_only_as_often_as_asked(kind: type[PretrainError], count: int, expected: bool) -> None:
    assert may_restart(Cause(kind, "told"), Ended(1), Faults(count, None), max_restarts=2) is expected


def test_a_run_that_was_asked_to_end_is_not_started_again() -> None:
    ended = Ended(1, {1: -9}, forwarded=[signal.SIGTERM])
    assert not may_restart(Cause(RankFault, "told"), ended, Faults(1, None), max_restarts=2)
