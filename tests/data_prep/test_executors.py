"""Worker processes: they end with their parent, and one that dies costs only what it was at."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_prep.executors import Processes
from pretrain.errors import DataError, RankFault

PROGRAM = """
import time
from data_prep.executors import Processes

if __name__ == "__main__":
    with Processes(2) as pool:
        for place, _ in pool.run(time.sleep, [0.0, 0.0, 600.0, 600.0]):
            print(place, flush=True)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    root = Path(__file__).parents[2]
    parent = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env={"PYTHONPATH": str(root)}, text=True
    )
    assert parent.stdout is not None
    assert {parent.stdout.readline(), parent.stdout.readline()} == {"0\n", "1\n"}
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    gone, alive = psutil.wait_procs(children, timeout=20)
    for process in alive:
        process.kill()
    assert not alive, [process.pid for process in gone]


def test_a_killed_worker_costs_only_unfinished_tasks(tmp_path: Path) -> None:
    tasks = [tmp_path / str(number) for number in range(9)]
    with Processes(2) as processes:
        results = sorted(processes.run(_count_up_and_die_at_the_fifth, tasks))
        assert processes.deaths == 1
    assert results == [(place, str(place)) for place in range(9)]
    runs = [path.stat().st_size for path in tasks]
    assert runs[:3] == [1, 1, 1] and sum(runs) <= 9 + 4, "finished tasks are not run again"


def test_a_task_whose_worker_dies_every_time_is_named_and_the_others_are_done() -> None:
    done = []
    with Processes(2) as processes, pytest.raises(RankFault, match=r"died 4 times at poison .*run it again"):
        done += [result for _, result in _all(processes, ["a", "b", "c", "poison", "d"], done)]
    assert {"a", "b", "c"} <= set(done)


def test_an_error_in_a_process_arrives_as_itself() -> None:
    with Processes(1) as processes, pytest.raises(DataError, match="from inside"):
        list(processes.run(_raise, [1]))


def test_tasks_are_taken_as_workers_come_free() -> None:
    taken = []

    def tasks():
        for number in range(100):
            taken.append(number)
            yield number

    with Processes(1) as processes:
        next(processes.run(abs, tasks()))
        assert len(taken) <= 4


def _all(processes: Processes, tasks: list[str], done: list[str]):
    for place, result in processes.run(_die_of_poison, tasks):
        done.append(result)
        yield place, result


def _raise(_: int) -> None:
    raise DataError("from inside")


def _die_of_poison(task: str) -> str:
    if task == "poison":
        time.sleep(0.2)  # the others of the crowd are done by then
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def _count_up_and_die_at_the_fifth(mark: Path) -> str:
    with mark.open("a") as file:
        file.write("x")
    if mark.name == "4" and mark.stat().st_size == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return mark.name
