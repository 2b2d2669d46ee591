"""Worker processes of the preparation end with the process that started them."""

import subprocess
import sys
from pathlib import Path

import psutil

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
