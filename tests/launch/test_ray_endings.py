"""What a job that prepares data does next, and how it counts its faults."""

import json
from pathlib import Path

import pytest

from launch.ray_cluster import main
from launch.ray_endings import Decision, decide, job_and_restart
from pretrain.errors import ConfigError


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_RESTART_COUNT", "PRETRAIN_REQUEUE", "PRETRAIN_MAX_FAULTS", "PRETRAIN_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("code", "asked", "policy", "faults", "expected"),
    [
        (0, True, "requeue", 0, ("stop", 0)),
        (2, True, "requeue", 0, ("stop", 2)),
        (3, False, "requeue", 0, ("stop", 3)),
        (5, False, "requeue", 0, ("stop", 5)),
        (75, False, "requeue", 3, ("requeue", 75)),
        (137, True, "requeue", 3, ("requeue", 75)),
        (75, True, "chain", 0, ("stop", 75)),
        (70, False, "requeue", 2, ("requeue", 70)),
        (1, False, "requeue", 2, ("requeue", 70)),
        (70, False, "requeue", 3, ("stop", 70)),
        (70, False, "never", 0, ("stop", 70)),
    ],
)
def test_what_comes_after_the_driver(
    code: int, asked: bool, policy: str, faults: int, expected: tuple[str, int]
) -> None:
    decision: Decision = decide(code, asked, policy, faults, max_faults=3)
    assert (decision.action, decision.exit_code) == expected


def test_faults_are_counted_until_a_task_is_finished(
    in_a_job: None, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRETRAIN_MAX_FAULTS", "2")
    records = config_file.parent / "data" / "records" / "ab"
    records.mkdir(parents=True)

    def after_a_fault() -> str:
        assert main(["ended", "--code", "70", "--", str(config_file)]) == 0
        return capsys.readouterr().out

    assert [after_a_fault(), after_a_fault()] == 2 * ["requeue 70\n"]
    (records / "ab12.npz").touch()
    assert [after_a_fault() for _ in range(3)] == ["requeue 70\n", "requeue 70\n", "stop 70\n"]
    rows = [json.loads(line) for line in (config_file.parent / "run" / "events.jsonl").read_text().splitlines()]
    assert [row["faults"] for row in rows] == [1, 2, 1, 2, 3]
    assert {(row["kind"], row["job"], row["restart"]) for row in rows} == {("preparation", 7, 0)}


def test_a_wrong_config_stops_the_job_with_the_drivers_code(in_a_job: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ended", "--code", "2", "--", "no-such.yaml"]) == 0
    said = capsys.readouterr()
    assert said.out == "stop 2\n" and "no-such.yaml" in said.err


def test_outside_of_a_job_it_is_said_that_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(ConfigError, match="SLURM_JOB_ID is not set"):
        job_and_restart()
