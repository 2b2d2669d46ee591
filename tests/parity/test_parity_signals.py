"""`pretrain parity` that is stopped: no traceback, no rank, no file left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]
COMMAND = ["parity", "parity.yaml", "--layouts", "tp=2", "--steps", "2000"]
PREPARED_S = 60.0
ENDED_S = 120.0
"""The server that ranks are forked from has to import torch first: three seconds, thirty where others use the cores."""


def _start(folder: Path) -> subprocess.Popen[str]:
    """The command in a session of its own, with ranks under way; started as from a terminal, where Ctrl-C is heard."""
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", *COMMAND],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + PREPARED_S
    while not list(folder.glob("rank*.log")):
        assert process.poll() is None and time.monotonic() < deadline, "no rank was started"
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("wait_s", [0.0, 4.0], ids=["as ranks start", "as they work"])
@pytest.mark.parametrize(
    ("number", "whom", "told"),
    [
        (signal.SIGINT, os.killpg, "stopped by Ctrl-C"),
        (signal.SIGINT, os.kill, "stopped by Ctrl-C"),
        (signal.SIGTERM, os.kill, "stopped by SIGTERM"),
    ],
    ids=["Ctrl-C", "SIGINT to the command", "SIGTERM"],
)
def test_a_stopped_check_leaves_nothing_behind(number: int, whom, told: str, wait_s: float, tmp_path: Path):
    process = _start(tmp_path)
    time.sleep(wait_s)
    begun = psutil.Process(process.pid).children(recursive=True)
    whom(process.pid, number)
    output, _ = process.communicate(timeout=ENDED_S)
    assert process.returncode == 130, output
    assert output.strip().endswith(told) and "Traceback" not in output
    assert not list(tmp_path.glob("rank*.log"))
    # A server that is still importing torch hears of its parent's end when it is done.
    _, left = psutil.wait_procs(begun, timeout=ENDED_S)
    assert not [each for each in left if each.status() != psutil.STATUS_ZOMBIE]
