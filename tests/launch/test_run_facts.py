"""What the folder of a run tells: the ends of its files, whatever their state."""

import os
import platform
import subprocess
import time
from pathlib import Path

import pytest

from launch.run_facts import LONGEST_TAIL_BYTES, find_runs, read_facts, tail_rows
from pretrain.files import append_json_line
from tests.launch.run_folders import write_run


def test_only_the_end_of_a_metrics_file_of_gigabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(8 << 30)  # a hole: it takes no room
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"".join(b'{"step": %d}\n' % step for step in range(5)))
    begin, notes = time.process_time(), []
    rows = tail_rows(path, notes)
    assert [row["step"] for row in rows[-5:]] == [0, 1, 2, 3, 4]
    assert time.process_time() - begin < 0.5


def test_a_line_that_is_being_written_is_left_out_without_a_note(tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "tra')
    assert ([row["step"] for row in tail_rows(path, notes)], notes) == ([1, 2], [])


def test_damaged_lines_are_left_out_and_noted(tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.jsonl", []
    path.write_bytes(b'{"step": 1}\n\0\0\0\0\n[3]\n\xff\xfe\n{"step": 2}\n')
    assert [row["step"] for row in tail_rows(path, notes)] == [1, 2]
    assert notes == ["metrics.jsonl: 3 of its last lines are damaged and left out"]


@pytest.mark.parametrize("size", [100_000, LONGEST_TAIL_BYTES - 100])
def test_a_row_longer_than_the_first_piece_is_read(size: int, tmp_path: Path) -> None:
    path, notes = tmp_path / "metrics.jsonl", []
    path.write_text('{"step": 1}\n{"step": 2, "name": "' + "x" * size + '"}\n')
    assert tail_rows(path, notes)[-1]["step"] == 2
    assert notes == []


def test_files_that_cannot_be_read_are_noted_and_the_others_are_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=range(1, 4))
    (run / "events.jsonl").mkdir()
    (run / "config.yaml").write_text("train: [")
    facts = read_facts(run)
    assert facts.metrics[-1]["step"] == 3
    assert facts.total_steps is None
    assert facts.notes == (
        "config.yaml: train.steps cannot be read from it",
        "events.jsonl: cannot be read (Is a directory)",
    )


def test_the_newest_committed_checkpoint_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", saved=200)
    (run / "checkpoints" / "step-00000300" / ".gen-1.partial").mkdir(parents=True)
    assert read_facts(run).checkpoint_step == 200


def test_a_config_submitted_after_the_last_launch_tells_the_total(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", total=100)
    (run / "submitted.yaml").write_text("train: {steps: 500}\n")
    os.utime(run / "config.yaml", (1, 1))
    assert read_facts(run).total_steps == 500
    os.utime(run / "submitted.yaml", (0, 0))
    assert read_facts(run).total_steps == 100


def test_a_launcher_is_gone_where_its_process_was_here_and_ended(tmp_path: Path) -> None:
    run, ended = write_run(tmp_path / "run"), subprocess.Popen(["true"])
    ended.wait()
    for pid, host, gone in [
        (ended.pid, platform.node(), True),
        (os.getpid(), platform.node(), False),
        (ended.pid, f"{platform.node()}, Slurm job 7, restart 0", True),
        (ended.pid, "elsewhere", False),
    ]:
        (run / "launcher.lock").write_text(f"process {pid} on {host}\n")
        assert read_facts(run).launcher_gone is gone


def test_runs_are_found_at_and_below_a_folder_and_other_folders_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "sweep" / "b")
    (tmp_path / "notes" / "old").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "0-latest").symlink_to(tmp_path / "a")
    runs, foreign = find_runs(tmp_path)
    assert runs == [tmp_path / "a", tmp_path / "sweep" / "b"]
    assert foreign == [tmp_path / "notes"]
    assert find_runs(tmp_path / "a") == ([tmp_path / "a"], [])


def test_what_a_launch_did_after_a_later_one_began_is_not_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", steps=range(1, 8), saved=7)
    assert (read_facts(run).metrics[-1]["step"], read_facts(run).checkpoint_step) == (7, 7)
    for checkpoint, committed, step in (({"step": 7}, {"1": 7}, 7), ({"step": 4}, {"1": 4}, 4), (None, {}, None)):
        append_json_line(run / "attempts.jsonl", {"generation": 2, "checkpoint": checkpoint, "committed": committed})
        facts = read_facts(run)
        assert facts.checkpoint_step == (7 if step == 7 else None)
        assert (facts.metrics[-1]["step"] if facts.metrics else None) == step
    append_json_line(run / "attempts.jsonl", {"generation": 3, "checkpoint": "?", "committed": {"1": "?", "x": 1}})
    assert read_facts(run).checkpoint_step is None
