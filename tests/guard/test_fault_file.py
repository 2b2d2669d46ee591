"""How a rank's end is written, and the exit code that it gives."""

import errno
from pathlib import Path

import pytest

from pretrain.errors import CheckpointError, DataError, Interrupted, Preempted
from pretrain.guard.fault_file import fault_path, read_faults, run_rank, write_fault
from pretrain.guard.parent import LAUNCHER_PID


def raises(error: BaseException):
    def work() -> None:
        raise error

    return work


@pytest.fixture(params=[True, False], ids=["under a launcher", "alone"])
def under_launcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setenv(LAUNCHER_PID, "1") if request.param else monkeypatch.delenv(LAUNCHER_PID, raising=False)
    return request.param


def test_a_rank_that_ends_well_writes_nothing(tmp_path: Path) -> None:
    assert run_rank(lambda: None, tmp_path, 1, 0) == 0
    assert read_faults(tmp_path, 1) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (DataError("data.dir=x is missing"), 3, "data.dir=x is missing"),
        (CheckpointError("damaged"), 4, "damaged"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl"),
            5,
            "/run/metrics.jsonl: no space is left",
        ),
        (ValueError("two\nlines"), 70, "ValueError: two lines"),
        (MemoryError(), 70, "MemoryError"),
    ],
)
def test_an_error_is_written_with_its_code(
    error: Exception, code: int, message: str, tmp_path: Path, under_launcher: bool
) -> None:
    assert run_rank(raises(error), tmp_path, 3, 2) == code
    (fault,) = read_faults(tmp_path, 3)
    assert (fault.rank, fault.exit_code, fault.kind) == (2, code, type(error).__name__)
    assert fault.message.startswith(message)


@pytest.mark.parametrize(
    ("error", "code"), [(Preempted("saved"), 75), (Interrupted("saved"), 130), (KeyboardInterrupt(), 130)]
)
def test_an_end_in_good_order_is_no_failure_to_the_launcher(
    error: BaseException, code: int, tmp_path: Path, under_launcher: bool
) -> None:
    wanted = 0 if under_launcher and not isinstance(error, KeyboardInterrupt) else code
    assert run_rank(raises(error), tmp_path, 1, 0) == wanted
    assert read_faults(tmp_path, 1)[0].exit_code == code


def test_only_a_fault_of_the_program_prints_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LAUNCHER_PID, "1")
    run_rank(raises(DataError("a mistake")), tmp_path, 1, 0)
    assert capsys.readouterr() == ("", "")
    run_rank(raises(KeyError("bug")), tmp_path, 1, 0)
    assert "Traceback" in capsys.readouterr().err


def test_without_a_launcher_rank_0_tells_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(LAUNCHER_PID, raising=False)
    for rank in (0, 1):
        run_rank(raises(DataError("a mistake")), tmp_path, 1, rank)
    assert capsys.readouterr().err == "error: a mistake\n"


def test_the_first_fault_comes_first_and_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    write_fault(tmp_path, 1, 1, DataError("first"))
    write_fault(tmp_path, 1, 0, DataError("second"))
    fault_path(tmp_path, 1, 2).write_text("{")
    assert [fault.message for fault in read_faults(tmp_path, 1)] == ["first", "second"]


def test_a_fault_that_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    assert write_fault(tmp_path, 1, 4, DataError("the cause")).exit_code == 3
    assert "rank 4: DataError: the cause" in capsys.readouterr().err
