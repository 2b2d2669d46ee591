"""A rank's bond to its launcher. That ranks die with a killed launcher is tested in tests/launch."""

import os
import subprocess
import sys
from pathlib import Path

from pretrain.guard.parent import LAUNCHER_PID

STARTED = "from pretrain.guard.parent import die_with_parent; die_with_parent(); print('lives')"


def ended(launcher: str | None) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop(LAUNCHER_PID, None)
    if launcher is not None:
        environment[LAUNCHER_PID] = launcher
    done = subprocess.run([sys.executable, "-c", STARTED], env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout.strip()


def test_a_rank_whose_launcher_is_gone_already_ends_at_once() -> None:
    assert ended("1") == (70, "")


def test_a_rank_with_its_launcher_or_without_one_lives() -> None:
    assert ended(str(os.getpid())) == (0, "lives")
    assert ended(None) == (0, "lives")


EARLY = """
import os, signal
from pretrain.guard.parent import DEFERRED_SIGNALS, accept_signals

heard = []
signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED_SIGNALS)
signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
before = list(heard)
accept_signals()
print(before, heard == [signal.SIGUSR1])
"""


def test_a_signal_that_came_early_is_delivered_when_handlers_stand() -> None:
    # In a process of its own: a thread of the test runner that does not block the signal would take it at once.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", EARLY], env=environment, capture_output=True, text=True)
    assert done.stdout == "[] True\n", done.stderr
