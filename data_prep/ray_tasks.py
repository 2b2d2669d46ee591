"""Where tasks run: Ray. The one file that imports it, and only when it is asked for.

Ray core tasks, one file range each: they read and write files themselves, and the object store carries settings and hashes. Ray
Data would move every row through the store instead, at a fifth of the speed.
"""

import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, Self

from data_prep.executors import Result, Task, one_thread
from pretrain.errors import DataError, RankFault

OBJECT_STORE_BYTES = 128 << 20
"""Tasks hand over settings and hashes, never text: the store needs to hold a few megabytes."""
TASKS_IN_FLIGHT_PER_CORE = 4
START_ATTEMPTS = 3
"""Ray gives its own processes 30 s to come up, which a busy machine exceeds at times."""


class RayTasks:
    """Tasks of a Ray cluster: the one that this process is connected to, else one of its own on this machine.

    Its own is reached from this machine alone and with a token that no one else has; it reports no usage, shows no dashboard,
    and ends with the preparation, its logs included.
    """

    def __init__(self, workers: int) -> None:
        self.name = f"ray, {workers} workers"
        self._workers = workers
        self._owned = ExitStack()

    def __enter__(self) -> Self:
        with self._owned as owned:
            owned.enter_context(_ray_environment())
            try:
                import ray
            except ImportError:
                raise DataError("the ray backend needs Ray: pip install ray, or use --backend local") from None

            if not ray.is_initialized():
                folder = owned.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
                owned.callback(ray.shutdown)
                self._start(folder)
            self._owned = owned.pop_all()
        return self

    def _start(self, folder: str) -> None:
        """Starts a cluster of its own. Raises RankFault where Ray does not come up."""
        import ray

        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                ray.init(
                    address="local",
                    num_cpus=self._workers,
                    num_gpus=0,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
                return
            except Exception as error:  # a plain Exception, RuntimeError or ValueError, whatever part of it failed
                ray.shutdown()
                if attempt == START_ATTEMPTS:
                    raise RankFault(
                        f"Ray does not start ({str(error).splitlines()[0]}); run it again, or with --backend local"
                    ) from error

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See Executor."""
        import ray
        import ray.exceptions

        remote = ray.remote(num_cpus=1, max_retries=3)(_call)
        waiting = iter(enumerate(tasks))
        running: dict[Any, int] = {}

        def submit() -> None:
            for place, task in waiting:
                running[remote.remote(function, task)] = place
                if len(running) >= TASKS_IN_FLIGHT_PER_CORE * self._workers:
                    return

        submit()
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            place = running.pop(done[0])
            try:
                yield place, ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise RankFault(
                    f"a Ray worker of the preparation died ({type(error).__name__}); finished tasks are kept: "
                    "run it again, with fewer workers, or with --backend local"
                ) from error
            submit()

    def __exit__(self, *details: Any) -> None:
        self._owned.close()


@contextmanager
def _ray_environment() -> Iterator[None]:
    """What ray.init has no argument for, as variables of this process and its children; put back at the end."""
    names = ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    before = {name: os.environ.get(name) for name in names}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it, Ray's servers on Linux listen on every address, whatever node address they are given.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_TOKEN"] = _ray_token()
    if "ray" not in sys.modules:  # it reads the mode when it is imported; once it is, ray.init turns tokens on itself
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _ray_token() -> str:
    """The secret of this process's Ray clusters; one for all of them, for Ray keeps the first one it sees."""
    return secrets.token_hex(32)


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    one_thread()
    return function(task)
