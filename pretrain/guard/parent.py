"""The bond between a rank and the launcher that started it.

Two things are arranged: no rank outlives its launcher (SIGKILL of the launcher included), and no signal that reaches a rank
before its handlers stand is lost. The launcher starts ranks with `DEFERRED_SIGNALS` blocked; they stay pending while torch is
imported and are delivered by `accept_signals`.

Alternatives not taken: a pipe whose closed end tells the death (needs a thread that the GIL can starve); cgroups (not every
machine grants them). Linux only for the first: elsewhere a rank is stopped by its launcher or by its peers' closed sockets.
"""

import ctypes
import os
import signal
import sys

LAUNCHER_PID = "PRETRAIN_LAUNCHER_PID"
"""Environment variable by which the launcher tells its process id to the ranks it starts."""

DEFERRED_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
"""Blocked in a rank from its first instruction until its handlers stand."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ties this rank's life to its launcher's: SIGKILL at the launcher's end, at once if it is gone already.

    Call it as early as possible, from the main thread. Without a launcher (ranks started by Slurm or by hand) it does nothing.
    """
    launcher = os.environ.get(LAUNCHER_PID)
    if launcher is None or not launcher.isdigit() or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # The launcher may have died before the line above: the kernel then tells nothing, but the parent is another process.
    if os.getppid() != int(launcher):
        os._exit(70)


def accept_signals() -> None:
    """Delivers the signals that arrived since the rank was started; call it once its handlers are installed."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEFERRED_SIGNALS)
