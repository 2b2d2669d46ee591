"""Stopping in good order: a signal asks, the step is finished, a checkpoint saved, and the process ends with the code that
says why.

A handler only notes the wish: whatever else it did could happen in the middle of a collective. Ranks get a signal at
nearly the same time but not between the same two steps, so the loop carries the wish of each rank through an all-reduce
(the maximum) and all stop after the same step. Repeats are no different: stopping at once is the launcher's, which
kills.
"""

import signal
from enum import IntEnum
from types import FrameType

from pretrain.errors import Interrupted, Preempted, PretrainError
from pretrain.guard.parent import accept_signals


class StopReason(IntEnum):
    """Why the run should stop; the larger one wins."""

    NONE = 0
    PREEMPTED = 1
    """USR1 or TERM: a scheduler takes the machine."""
    INTERRUPTED = 2
    """Ctrl-C."""

    def error(self, step: int, total: int) -> PretrainError:
        """What ends the run once the checkpoint of `step` is saved."""
        saved = f"after step {step:,} of {total:,}; its checkpoint is saved"
        if self is StopReason.INTERRUPTED:
            return Interrupted(f"stopped by Ctrl-C {saved}")
        return Preempted(f"stopped by a signal {saved}")


_REASONS = {
    signal.SIGINT: StopReason.INTERRUPTED,
    signal.SIGTERM: StopReason.PREEMPTED,
    signal.SIGUSR1: StopReason.PREEMPTED,
}


class StopSignals:
    """Notes INT, TERM and USR1 from `install` on, to the end of the process. Main thread only."""

    def __init__(self) -> None:
        self.reason = StopReason.NONE
        """The strongest wish so far, of this rank alone."""

    @staticmethod
    def install() -> "StopSignals":
        """Handles the signals from now on, those included that came while the process was starting."""
        signals = StopSignals()
        for number in _REASONS:
            signal.signal(number, signals._note)
        accept_signals()
        return signals

    @staticmethod
    def dismiss() -> None:
        """Ignores the signals from now on. Python takes its handlers down before the process ends, and a scheduler that asks
        twice would then kill what has just saved: a fault where there was none."""
        for number in _REASONS:
            signal.signal(number, signal.SIG_IGN)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.reason = max(self.reason, _REASONS[signal.Signals(number)])
