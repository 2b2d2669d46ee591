"""Progress on the console: a bar for each phase where the console is live, one line each where it is a file or a pipe."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class PhaseProgress:
    """The bar of one phase."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task
        self._started = time.monotonic()
        self.documents = self.size = 0

    def advance(self, size: int, documents: int) -> None:
        """So many bytes and documents more are done."""
        self.documents += documents
        self.size += size
        self._progress.update(self._task, advance=size, said=self.said())

    def said(self) -> str:
        """Documents and rate so far."""
        if not self.size:
            return ""
        rate = self.size / 1e6 / max(time.monotonic() - self._started, 1e-9)
        return f"{self.documents:,} documents, {rate:.1f} MB/s"


class Phases:
    """The phases of a preparation, one under the other."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    @contextmanager
    def phase(self, name: str, size: int | None) -> Iterator[PhaseProgress]:
        """A phase over so many bytes; None: of unknown length."""
        task = self._progress.add_task(name, total=size, said="")
        shown = PhaseProgress(self._progress, task)
        started = time.monotonic()
        yield shown
        self._progress.update(task, total=max(shown.size, 1), completed=max(shown.size, 1))
        if not self._console.is_terminal:
            said = shown.said()
            self._console.print(
                f"{name}: {time.monotonic() - started:.1f} s" + (f", {said}" if said else ""), highlight=False
            )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()
