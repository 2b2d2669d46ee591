"""Where tasks run: in this process, or in several of this machine. (Ray's is in data_prep.ray_tasks.)

An executor hands back results as they come, with the task's place; order is made by whoever puts them together. Tasks are taken
from their iterator as workers come free, so a plan of a million tasks costs no more memory than one of ten. Processes are
spawned, not forked: a fork copies locks of the tokenizer's threads in whatever state they are.

A worker that dies takes its pool along (`concurrent.futures` cannot tell which task it had). The pool is made anew, and what was
under way runs again, one task at a time: so the culprit is known by name, and costs nobody else a retry.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from pretrain.errors import RankFault

Task = TypeVar("Task")
Result = TypeVar("Result")

RETRIES = 3
"""How often a task whose worker died is tried again."""
TASKS_IN_FLIGHT_PER_WORKER = 2


class Executor(Protocol):
    """Runs a pure function over tasks.

    Functions stand at the top of a module; tasks and results can be pickled, and `str(task)` names its files.
    """

    deaths: int
    """Workers that died and were replaced, as far as the executor is told."""

    @property
    def name(self) -> str:
        """Who works, for people."""
        ...

    def look_at(self, folder: Path) -> None:
        """Makes sure that workers see a folder. Raises DataError, naming the one that does not."""
        ...

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """(place, result) of every task, as they finish.

        Raises what a task raised, and RankFault where a task's worker died again and again.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *details: Any) -> None: ...


class InProcess:
    """One task after another in this process; the tokenizer may still use its threads."""

    name = "local, 1 process"
    deaths = 0

    def look_at(self, folder: Path) -> None:
        """See Executor."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """See Executor."""
        for place, task in enumerate(tasks):
            yield place, function(task)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: Any) -> None:
        return None


class Processes:
    """A pool of processes on this machine."""

    def __init__(self, workers: int) -> None:
        self.name = f"local, {workers} processes"
        self.deaths = 0
        self._workers = workers
        self._pool = self._new_pool()

    def look_at(self, folder: Path) -> None:
        """See Executor."""

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """See Executor."""
        waiting = iter(enumerate(tasks))
        while suspects := (yield from self._together(function, waiting)):
            self._replace_pool()
            for place, task in suspects:
                yield place, self._alone(function, task)

    def _together(
        self, function: Callable[[Task], Result], waiting: Iterator[tuple[int, Task]]
    ) -> Generator[tuple[int, Result], None, list[tuple[int, Task]]]:
        """Runs tasks until there are no more, or a worker dies; returns those that were under way then."""
        running: dict[Future[Result], tuple[int, Task]] = {}
        while True:
            refused: list[tuple[int, Task]] = []
            for place, task in islice(waiting, TASKS_IN_FLIGHT_PER_WORKER * self._workers - len(running)):
                try:
                    running[self._pool.submit(function, task)] = place, task
                except BrokenProcessPool:
                    refused.append((place, task))
            if not running:
                return refused
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            if refused or any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                wait(running)  # a broken pool ends them all at once
                lost = [run for future, run in running.items() if isinstance(future.exception(), BrokenProcessPool)]
                yield from self._results(running, set(running))
                return sorted([*lost, *refused], key=lambda run: run[0])
            yield from self._results(running, done)

    def _results(
        self, running: dict[Future[Result], tuple[int, Task]], done: set[Future[Result]]
    ) -> Iterator[tuple[int, Result]]:
        for future in sorted(done, key=lambda future: running[future][0]):
            place, _ = running.pop(future)
            if not isinstance(future.exception(), BrokenProcessPool):
                yield place, future.result()

    def _alone(self, function: Callable[[Task], Result], task: Task) -> Result:
        for _ in range(RETRIES):
            try:
                return self._pool.submit(function, task).result()
            except BrokenProcessPool:
                self._replace_pool()
        raise RankFault(
            f"a worker process of the preparation died {RETRIES + 1} times at {task} (out of memory?); finished tasks are "
            "kept: run it again, with fewer workers or a smaller prepare.task_bytes"
        )

    def _replace_pool(self) -> None:
        self.deaths += 1
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._workers, multiprocessing.get_context("spawn"), initializer=_start_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle: it lets running tasks finish and drops the others. A killed parent ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_thread()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by another process"
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def one_thread() -> None:
    """Makes the tokenizer of a worker process use that one core: the others have workers of their own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
