"""The lock of a run: one launcher, and a requeued job that goes on although its earlier start still holds the lock."""

import fcntl
import os
import threading
from pathlib import Path

import pytest

from launch.lock import LOCK_NAME, launcher_name, only_launcher, takes_over
from pretrain.errors import ConfigError


def start(job: int, restart: int) -> dict[str, int]:
    return {"job": job, "restart": restart}


@pytest.fixture(autouse=True)
def _outside_of_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr("launch.lock._POLL_S", 0.01)


@pytest.mark.parametrize(
    ("mine", "held", "may"),
    [
        (start(7, 1), start(7, 0), True),
        (start(7, 12), start(7, 2), True),
        (start(7, 1), start(7, 1), False),
        (start(7, 0), start(7, 1), False),
        (start(8, 1), start(7, 0), False),
        (start(7, 1), None, False),
        (None, start(7, 0), False),
    ],
)
def test_only_a_later_start_of_the_same_job_takes_a_run_over(
    mine: dict[str, int] | None, held: dict[str, int] | None, may: bool
) -> None:
    assert takes_over(mine, launcher_name(3, "n1", held)) is may


def test_a_requeued_job_takes_the_run_from_its_earlier_start_and_keeps_others_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with only_launcher(tmp_path, start(7, 0)):
        with only_launcher(tmp_path, start(7, 1)):
            (line,) = capsys.readouterr().err.splitlines()
            assert "taken over from process" in line and "Slurm job 7, restart 0" in line
            with pytest.raises(ConfigError, match="Slurm job 7, restart 1; wait for it"), only_launcher(tmp_path):
                pass
        with only_launcher(tmp_path):
            pass  # the first start's lock is of a file that has no name any more


def test_a_lock_file_that_was_replaced_while_it_was_opened_holds_nobody_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, replaced = fcntl.flock, []

    def flock_too_late(handle: int, operation: int) -> None:
        flock(handle, operation)
        if not replaced:
            replaced.append((tmp_path / LOCK_NAME).rename(tmp_path / "old"))

    monkeypatch.setattr(fcntl, "flock", flock_too_late)
    with only_launcher(tmp_path), pytest.raises(ConfigError, match="being trained"), only_launcher(tmp_path):
        pass


def test_another_job_waits_for_a_dying_launcher_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.joinpath(LOCK_NAME).write_text(launcher_name(1, "n9", start(7, 3)))
    handle = os.open(tmp_path / LOCK_NAME, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    threading.Timer(0.2, os.close, (handle,)).start()
    with only_launcher(tmp_path, start(8, 0)):
        told = capsys.readouterr().err
    assert told == f"{tmp_path}: process 1 on n9, Slurm job 7, restart 3 has this run; waiting up to 60 s for its end\n"


def test_a_launcher_that_does_not_die_is_an_error_in_the_end(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="this run is being trained by process")
    with only_launcher(tmp_path), refused, only_launcher(tmp_path, start(8, 0), wait_s=0.05):
        pass
