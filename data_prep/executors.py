"""Where tasks run: in this process, or in several of this machine. (Ray's is in data_prep.pipeline.)

An executor hands back results as they come, with the task's place; order is made by whoever puts them together. Processes are
spawned, not forked: a fork copies locks of the tokenizer's threads in whatever state they are.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Protocol, Self, TypeVar

from pretrain.errors import RankFault

Task = TypeVar("Task")
Result = TypeVar("Result")


class Executor(Protocol):
    """Runs a pure function over tasks. Functions stand at the top of a module; tasks and results can be pickled."""

    name: str

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """(place, result) of every task, as they finish. Raises what a task raised, and RankFault where a worker died."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *details: Any) -> None: ...


class InProcess:
    """One task after another in this process; the tokenizer may still use its threads."""

    name = "local, 1 process"

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
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
        self._pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_start_worker)

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See Executor."""
        futures = {self._pool.submit(function, task): place for place, task in enumerate(tasks)}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool:
            raise RankFault(
                "a worker process of the preparation died (out of memory?); finished tasks are kept: run it again, "
                "with fewer workers or a smaller prepare.task_bytes"
            ) from None

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
    wait([parent.sentinel])
    os._exit(1)


def one_thread() -> None:
    """Makes the tokenizer of a worker process use that one core: the others have workers of their own."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
