"""Signals at the end of a rank's life. What they do within it is tested in tests/launch and tests/faults."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

LATE = """
import os, signal
from pretrain.guard.preemption import StopSignals

class Late:
    '''Sends a signal when the interpreter has taken its handlers down.'''
    kill, asked = os.kill, (os.getpid(), signal.SIGUSR1)
    def __del__(self):
        Late.kill(*Late.asked)

late = Late()
StopSignals.install()
{dismiss}
"""


@pytest.mark.parametrize(("dismiss", "code"), [("StopSignals.dismiss()", 0), ("", -signal.SIGUSR1)])
def test_a_signal_that_comes_at_the_very_end_kills_nothing_once_they_are_dismissed(dismiss: str, code: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", LATE.format(dismiss=dismiss)], env=environment, capture_output=True)
    assert done.returncode == code, done.stderr
