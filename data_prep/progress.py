"""Progress on the console: a bar for each phase where the console is live; lines now and then where it is a file or a pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_INTERVAL_S = 30.0
"""Between two lines of a phase where the console is no terminal: a log of a day holds 3,000 of them."""


class PhaseProgress:
    """The bar of one phase."""

    def __init__(self, name: str, total: int | None, progress: Progress, task: TaskID, log: "Log") -> None:
        self._name, self._total = name, total
        self._progress, self._task, self._log = progress, task, log
        self._started = self._last_line = log.clock()
        self.documents = self.size = 0

    def advance(self, size: int, documents: int) -> None:
        """So many bytes and documents more are done."""
        self.documents += documents
        self.size += size
        self._progress.update(self._task, advance=size, said=self.said())
        if self._log.clock() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = self._log.clock()
            self._log.line(f"{self._name}: {self._outlook()}")

    @property
    def seconds(self) -> float:
        """Since the phase began."""
        return self._log.clock() - self._started

    def said(self) -> str:
        """Documents and rate so far."""
        if not self.size:
            return ""
        return f"{self.documents:,} documents, {self.size / 1e6 / max(self.seconds, 1e-9):.1f} MB/s"

    def _outlook(self) -> str:
        if not self._total or not self.size:
            return self.said()
        left = self.seconds * (self._total - self.size) / self.size
        return f"{100 * self.size / self._total:.0f} %, {self.said()}, {duration(left)} left"


class Log:
    """Lines for a console that is no terminal; silent where it is one, for a bar is there."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console, self.clock = console, clock

    def line(self, text: str) -> None:
        """Prints a line."""
        if not self._console.is_terminal:
            self._console.print(text, highlight=False, soft_wrap=True)


class Phases:
    """The phases of a preparation, one under the other."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = Log(console, clock)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    @contextmanager
    def phase(self, name: str, size: int | None) -> Iterator[PhaseProgress]:
        """A phase over so many bytes; None: of unknown length."""
        task = self._progress.add_task(name, total=size, said="")
        shown = PhaseProgress(name, size, self._progress, task, self._log)
        yield shown
        self._progress.update(task, total=max(shown.size, 1), completed=max(shown.size, 1))
        said = shown.said()
        self._log.line(f"{name}: {shown.seconds:.1f} s" + (f", {said}" if said else ""))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


def duration(seconds: float) -> str:
    """A time as people say it: `40 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
