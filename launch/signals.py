"""Signals that ask a launcher to end: TERM, USR1, Ctrl-C, a closed terminal.

    with ending_signals("pretrain train CONFIG") as signals:
        ...                     # a signal raises Preempted or Interrupted here: no rank runs
        with signals.held():    # ranks run: signals are collected, and passed on to them
            ...

A launcher that was started deaf to TERM or USR1 (`trap "" USR1` before `exec`, so that the signal does not kill it before its
handlers stand) hears them all the same; one that was started deaf to Ctrl-C or HUP (nohup, a background job) stays so.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from pretrain.errors import Interrupted, Preempted, PretrainError

_MAY_BE_IGNORED = (signal.SIGINT, signal.SIGHUP)


class EndingSignals:
    """What was asked so far. Main thread only."""

    def __init__(self, again: str) -> None:
        self.caught: list[signal.Signals] = []
        """While held: those that were not passed on yet."""
        self._again = again
        self._is_held = False
        self._raised = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within it nothing is raised."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def check(self) -> None:
        """Raises for a signal that came while they were held, and was passed on to nobody."""
        if self.caught:
            raise self._error(self.caught[0])

    def note(self, number: int, _frame: object = None) -> None:
        """The handler. Raises Preempted or Interrupted where they are not held; once, Ctrl-C each time."""
        signum = signal.Signals(number)
        if self._is_held:
            self.caught.append(signum)
        elif signum == signal.SIGINT or not self._raised:
            self._raised = True
            raise self._error(signum)

    def _error(self, signum: signal.Signals) -> PretrainError:
        if signum == signal.SIGINT:
            return Interrupted(f"stopped by Ctrl-C while no rank ran\ncontinue: {self._again}")
        return Preempted(f"stopped by {signum.name} while no rank ran\ncontinue: {self._again}")


@contextmanager
def ending_signals(again: str) -> Iterator[EndingSignals]:
    """Handles the signals within it; `again` is the command that continues the run, for messages."""
    signals = EndingSignals(again)
    before = {}
    for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1):
        if signum not in _MAY_BE_IGNORED or signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, signals.note)
    try:
        yield signals
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
