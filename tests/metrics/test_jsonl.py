"""metrics.jsonl and its companions: what is written comes back, whatever happened to the writer."""

import errno
import json
import math
import os
from pathlib import Path

import pytest

from pretrain.errors import StorageError
from pretrain.files import append_json_line, read_json_lines
from pretrain.metrics.jsonl import JsonlTracker, metric_names, read_metrics


def fail(message: str) -> None:
    raise AssertionError(f"unexpected complaint: {message}")


def open_jsonl(run_dir: Path, attempt: int = 1) -> JsonlTracker:
    return JsonlTracker(run_dir, attempt=attempt, complain=fail)


def test_values_come_back_to_the_last_bit(tmp_path: Path) -> None:
    tracker = open_jsonl(tmp_path)
    values = {"train/loss": 0.1 + 0.2, "train/lr": 1e-300, "train/grad_norm": math.nextafter(1.0, 2.0)}
    tracker.log_step(7, values)
    (row,) = read_metrics(tmp_path)
    assert {name: row[name] for name in metric_names([row])} == values
    assert row["step"] == 7


def test_rows_are_on_disk_before_the_tracker_is_finished(tmp_path: Path) -> None:
    tracker = open_jsonl(tmp_path)
    tracker.log_step(1, {"train/loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_valid_json_and_come_back(tmp_path: Path, value: float) -> None:
    open_jsonl(tmp_path).log_step(1, {"train/grad_norm": value})
    line = (tmp_path / "metrics.jsonl").read_text()
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert repr(read_metrics(tmp_path)[0]["train/grad_norm"]) == repr(value)


def test_of_a_replayed_step_the_higher_attempt_wins(tmp_path: Path) -> None:
    first = open_jsonl(tmp_path, attempt=1)
    for step in (1, 2, 3):
        first.log_step(step, {"train/loss": float(step)})
    second = open_jsonl(tmp_path, attempt=2)
    for step in (2, 3, 4):
        second.log_step(step, {"train/loss": 10.0 * step})
    first.log_step(3, {"train/loss": -1.0})
    assert [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path)] == [(1, 1), (2, 20), (3, 30), (4, 40)]


def test_rows_of_a_launch_that_went_on_after_a_later_one_began_are_left_out(tmp_path: Path) -> None:
    stale = open_jsonl(tmp_path, attempt=1)
    for step in range(1, 8):
        stale.log_step(step, {"train/loss": float(step)})
    register(tmp_path, 2, {"step": 4, "generation": 1})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4], "launch 2 goes on from step 4"
    open_jsonl(tmp_path, attempt=2).log_step(5, {"train/loss": 50.0})
    for step in (5, 8, 9):
        stale.log_step(step, {"train/loss": -1.0})
    assert [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path)][3:] == [(4, 4.0), (5, 50.0)]


def test_a_launch_that_went_back_farther_than_the_newest_checkpoint_replaces_all_that_follows(tmp_path: Path) -> None:
    first = open_jsonl(tmp_path, attempt=1)
    for step in range(1, 8):
        first.log_step(step, {"train/loss": float(step)})
    register(tmp_path, 2, {"step": 6, "generation": 1})  # it is damaged: launch 2 starts from step 2
    open_jsonl(tmp_path, attempt=2).log_step(3, {"train/loss": 30.0})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    register(tmp_path, 3, None)  # a launch that found no checkpoint begins anew
    assert [row["step"] for row in read_metrics(tmp_path)] == []
    (tmp_path / "attempts.jsonl").write_text('{"generation": 1}\n{"generation": 2}\n')  # as older versions wrote them
    assert [(row["step"], row["train/loss"]) for row in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def register(run_dir: Path, attempt: int, checkpoint: dict[str, int] | None) -> None:
    append_json_line(run_dir / "attempts.jsonl", {"attempt": attempt, "checkpoint": checkpoint})


def test_rows_of_one_step_and_attempt_are_one(tmp_path: Path) -> None:
    tracker = open_jsonl(tmp_path)
    tracker.log_step(5, {"train/loss": 1.0})
    tracker.log_step(5, {"eval/loss": 2.0})
    (row,) = read_metrics(tmp_path)
    assert (row["train/loss"], row["eval/loss"]) == (1.0, 2.0)


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    open_jsonl(tmp_path).log_step(1, {"train/loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "attempt": 1, "train/lo')
    open_jsonl(tmp_path, attempt=2).log_step(2, {"train/loss": 2.0})
    assert [row["train/loss"] for row in read_metrics(tmp_path)] == [1.0, 2.0]


def test_a_file_without_any_line_end_starts_afresh(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("x" * 200_000)
    open_jsonl(tmp_path).log_step(1, {"train/loss": 1.0})
    assert len(read_metrics(tmp_path)) == 1


def test_a_full_disk_is_told_once_and_no_row_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    tracker = JsonlTracker(tmp_path, attempt=1, complain=told.append)
    write, full = os.write, [True]

    def write_or_fail(handle: int, data: bytes) -> int:
        if full[0]:
            if len(data) > 10:
                return write(handle, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    monkeypatch.setattr(os, "write", write_or_fail)
    for step in range(3):
        tracker.log_step(step, {})
    full[0] = False
    tracker.log_step(3, {})
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2, 3]
    assert len(told) == 1
    assert "no space is left" in told[0]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotADirectoryError, FileExistsError)):
        open_jsonl(tmp_path / "file" / "run")


def test_the_attempt_and_its_events_are_noted_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-0123456789")
    tracker = open_jsonl(tmp_path, attempt=3)
    tracker.start({}, {"layout": {"tp": 2}, "note": "uses canary-0123456789"})
    tracker.log_event("fault", message="rank 1: canary-0123456789 refused", step=4)
    tracker.finish({"train/loss": 2.0}, exit_code=75)
    start, fault, finish = read_json_lines(tmp_path / "events.jsonl")
    assert (start["attempt"], start["facts"]["layout"]) == (3, {"tp": 2})
    assert (fault["kind"], fault["step"], finish["exit_code"]) == ("fault", 4, 75)
    assert "canary" not in "".join(path.read_text() for path in tmp_path.iterdir())
