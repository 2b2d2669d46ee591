"""The table of all runs: its text at a fixed width and clock, and the command."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.job_states import JobState, Queue
from launch.run_state import RunRow
from launch.status import View, look, table
from tests.launch.run_folders import NOW, write_run

START, SAVED = {"kind": "start"}, {"kind": "checkpoint", "step": 150}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A run in each of the usual states."""
    folder = tmp_path / "runs"
    write_run(folder / "gpt-small", steps=range(1, 201), events=[START, SAVED], saved=150, launches=2)
    write_run(folder / "sweep" / "lr-1e-3", jobs=[41], steps=range(1, 31), step_s=20, events=[START], slurm_job=41)
    write_run(folder / "sweep" / "lr-3e-3", jobs=[42], launches=0)
    write_run(folder / "finished", steps=range(900, 1001), saved=1000, events=[{"kind": "finish", "exit_code": 0}])
    end = {
        "kind": "launch_ended",
        "exit_code": 70,
        "message": "rank 3 was killed by SIGKILL; its log: gen-1/rank-3.log",
    }
    write_run(folder / "broken", steps=range(1, 51), events=[START, end])
    old = {**START, "time": NOW - 9100}
    write_run(folder / "silent", steps=range(1, 51), events=[old], last_row_age_s=9000, launch_age_s=9200)
    (folder / "notes").mkdir()
    with (folder / "broken" / "metrics.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n")
    return folder


def seen(folder: Path) -> View:
    jobs = {41: JobState("RUNNING", 4, "None"), 42: JobState("PENDING", 4, "Priority")}

    def ask(asked: object) -> Queue:
        assert asked == [41, 42]
        return Queue(jobs)

    return look(folder, NOW, ask)


WIDE = """\
6 runs: 1 running, 1 training, 1 pending, 1 stale, 1 failed, 1 done
run            state                         step    loss  tok/s     ETA  restarts  last event
sweep/lr-1e-3  running on 4 nodes    30/1000   3%  4.9700  12.3k   5h23m         0  1m00s ago: launched
gpt-small      training             200/1000  20%  4.8000  12.3k  26m39s         1  1m00s ago: checkpoint 150
sweep/lr-3e-3  pending (Priority)          0/1000       -      -       -         -  -
silent         stale (2h30m)         50/1000   5%  4.9500  12.3k       -         0  2h31m ago: launched
broken         failed                50/1000   5%  4.9500  12.3k       -         0  1m00s ago: rank 3 was killed by SIGKILL; it…
finished       done                1000/1000 100%  4.0000  12.3k       -         0  1m00s ago: finished
not runs: notes
broken/metrics.jsonl: 1 of its last lines is damaged and left out
"""


def test_the_table_says_how_every_run_stands(runs: Path) -> None:
    lines = [line.plain for line in table(seen(runs), width=128)]
    assert "\n".join(lines) + "\n" == WIDE


@pytest.mark.parametrize(
    ("width", "heading"),
    [
        (96, "run            state                         step    loss     ETA  last event"),
        (80, "run            state                         step    loss  tok/s     ETA"),
        (60, "run            state                         step    loss"),
        (20, "run            state"),
    ],
)
def test_a_narrow_table_gives_up_the_least_important_columns(width: int, heading: str, runs: Path) -> None:
    lines = [line.plain for line in table(seen(runs), width=width)]
    assert lines[1] == heading
    assert max(map(len, lines)) <= width


def test_a_short_table_tells_how_many_runs_it_leaves_out_and_those_that_are_done_go_first() -> None:
    rows = tuple(RunRow(f"run-{n}", state) for state in ("training", "done") for n in range(10))
    lines = [line.plain for line in table(View(rows, ("a note",)), width=80, height=16)]
    assert len(lines) == 15
    assert lines[-2:] == ["and 9 runs: 9 done", "a note"]


def test_runs_of_one_state_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("run-10", "run-2", "a"):
        write_run(tmp_path / name, events=[START])
    assert [row.run for row in look(tmp_path, NOW).rows] == ["a", "run-2", "run-10"]


def test_texts_from_outside_cannot_move_the_cursor() -> None:
    lines = table(View((RunRow("a\x1b[2Jb", "training", event="x\ry"),), ("n\no",)), width=80)
    assert all(line.plain.isprintable() for line in lines)


def test_hundreds_of_runs_are_read_in_a_moment(tmp_path: Path) -> None:
    for number in range(50):
        write_run(tmp_path / f"run-{number}", steps=range(1, 101), events=[START])
    begin = time.process_time()
    assert len(look(tmp_path, NOW).rows) == 50
    assert time.process_time() - begin < 5


def test_the_command_prints_once_where_the_output_is_no_terminal(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", str(runs / "finished")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 run: 1 done\nrun ") and "finished" in out


def test_scripts_get_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(runs / "finished"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["notes"] == []
    (run,) = told["runs"]
    assert (run["run"], run["state"], run["step"], run["restarts"]) == ("finished", "done", 1000, 0)


def test_a_folder_that_is_not_there_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("no run is here; ")


def test_status_imports_no_torch() -> None:
    code = "import sys, launch.status; print({'torch', 'numpy', 'pydantic', 'wandb'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
