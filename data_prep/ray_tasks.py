"""Where tasks run: Ray. The one file that imports it, and only when it is asked for.

Ray core tasks, one file range each: they read and write files themselves, and the object store carries settings and hashes. Ray
Data would move every row through the store instead, at a fifth of the speed.
"""

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any, Self

from data_prep.executors import RETRIES, Result, Task, available_cores, one_thread
from pretrain.errors import ConfigError, DataError, RankFault

OBJECT_STORE_BYTES = 128 << 20
"""Tasks hand over settings and hashes, never text: the store needs to hold a few megabytes."""
TASKS_IN_FLIGHT_PER_CORE = 4
CONNECT_S = 10.0
HEAD_CHECK_S = 5.0
HEAD_CHECKS = 3
"""How often in a row the head may not answer."""
LOOK_S = 0.2
START_ATTEMPTS = 3
"""Ray gives its own processes 30 s to come up, which a busy machine exceeds at times."""


class RayTasks:
    """Tasks of a Ray cluster: one given by its address, or the one that this process is connected to, else one of its own.

    Its own is on this machine, reached from this machine alone and with a token that no one else has; it reports no usage, shows
    no dashboard, and ends with the preparation, its logs included. A given one is left as it is; where it asks for a token, that
    is in the environment, as Ray has it (RAY_AUTH_MODE, RAY_AUTH_TOKEN). Its nodes need this package and the data folder.
    """

    deaths = 0  # Ray replaces workers without a word

    def __init__(self, workers: int | None, address: str | None = None) -> None:
        """Starts nothing yet.

        Args:
            workers: tasks at once; None: as many as cores, of this machine or of the given cluster.
            address: `host:port`, `ray://host:port` or `auto`.
        """
        self._workers, self._address = workers, address
        self._in_flight = 1
        self._joined = False
        self._head: tuple[str, int] | None = None
        self._owned = ExitStack()
        self._hosts: set[str] = set()
        self._name = "ray"

    @property
    def name(self) -> str:
        """Who works; with the machines that finished a task, where they were several."""
        return f"{self._name} on {len(self._hosts)} nodes" if len(self._hosts) > 1 else self._name

    def __enter__(self) -> Self:
        with self._owned as owned:
            owned.enter_context(nullcontext() if self._address else _ray_environment())
            try:
                import ray
            except ImportError:
                raise DataError("the ray backend needs Ray: pip install ray, or use --backend local") from None

            if ray.is_initialized():
                self._join(ray.cluster_resources())
            elif self._address:
                owned.callback(ray.shutdown)
                self._connect(self._address)
                self._join(ray.cluster_resources())
            else:
                folder = owned.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
                owned.callback(ray.shutdown)
                workers = self._workers or available_cores()
                self._start(folder, workers)
                self._in_flight, self._name = TASKS_IN_FLIGHT_PER_CORE * workers, f"ray, {workers} workers"
            self._head = _head_address()
            self._owned = owned.pop_all()
        return self

    def _join(self, resources: Mapping[str, float]) -> None:
        """Of a cluster that others may use too, no more is taken than was asked for."""
        self._joined = True
        cores = int(resources.get("CPU", 1))
        self._in_flight = self._workers or TASKS_IN_FLIGHT_PER_CORE * cores
        self._name = f"ray, {self._workers or cores} workers"

    def _connect(self, address: str) -> None:
        import ray

        try:
            _check_reachable(address)
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConfigError:
            raise
        except Exception as error:  # OSError, RuntimeError or ValueError, whatever part of it failed
            ray.shutdown()
            raise ConfigError(
                f"--address {address}: no Ray cluster can be reached there ({_first_line(error)}); start one with `ray start "
                "--head`, name its host:port, and set RAY_AUTH_TOKEN where it asks for one"
            ) from error

    def _start(self, folder: str, workers: int) -> None:
        """Starts a cluster of its own. Raises RankFault where Ray does not come up."""
        import ray

        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                ray.init(
                    address="local",
                    num_cpus=workers,
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
                        f"Ray does not start ({_first_line(error)}); run it again, or with --backend local"
                    ) from error

    def look_at(self, folder: Path) -> None:
        """See Executor: a file that is written here must be found by every node of a cluster that was given."""
        if not self._joined:
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        with NamedTemporaryFile(dir=folder, prefix=".seen-") as probe:
            asked = {
                node: ray.remote(num_cpus=0)(_sees)
                .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
                .remote(str(Path(probe.name).resolve()))
                for node in nodes
            }
            for node, answer in asked.items():
                if not self._result(answer, f"the look of node {nodes[node]} at {folder}"):
                    raise DataError(
                        f"{folder}: node {nodes[node]} of the Ray cluster does not see this folder; name one in data.dir that "
                        "every node mounts under the same path"
                    )

    def run(self, function: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[tuple[int, Result]]:
        """See Executor."""
        import ray

        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
        waiting = iter(enumerate(tasks))
        running: dict[Any, tuple[int, str]] = {}
        looked = time.monotonic()
        while True:
            for place, task in islice(waiting, self._in_flight - len(running)):
                running[remote.remote(function, task)] = place, str(task)
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1, timeout=HEAD_CHECK_S)
            if time.monotonic() - looked >= HEAD_CHECK_S:
                self._look_for_head()
                looked = time.monotonic()
            for reference in done:
                place, name = running.pop(reference)
                host, result = self._result(reference, name)
                self._hosts.add(host)
                yield place, result

    def _result(self, reference: Any, name: str) -> Any:
        import ray
        import ray.exceptions

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise RankFault(
                f"a Ray worker of the preparation died at {name} ({type(error).__name__}: {_first_line(error)}); finished tasks "
                "are kept: run it again, with fewer workers, or with --backend local"
            ) from error

    def _look_for_head(self) -> None:
        """Raises RankFault where the head is gone. Ray itself waits a minute for it, then ends this process without a word."""
        for attempt in range(HEAD_CHECKS):
            try:
                if self._head is not None:
                    socket.create_connection(self._head, timeout=HEAD_CHECK_S).close()
                return
            except OSError as error:
                if attempt == HEAD_CHECKS - 1:
                    raise RankFault(
                        f"the head of the Ray cluster at {self._head[0] if self._head else ''} is gone ({error}); finished tasks "
                        "are kept: run it again"
                    ) from error
                time.sleep(1.0)

    def __exit__(self, *details: Any) -> None:
        self._owned.close()


@contextmanager
def all_nodes(address: str, nodes: Sequence[str], wait_s: float) -> Iterator[None]:
    """Within it this process is connected to a Ray cluster that is just being started, with all of its nodes.

    Args:
        address: `host:port` of the head.
        nodes: the names that they are started with (`ray start --node-name`).
        wait_s: how long they may take.

    Raises RankFault with the names of those that did not come.
    """
    import ray

    with ExitStack() as owned:
        if not ray.is_initialized():
            owned.callback(ray.shutdown)
        end, missing = time.monotonic() + wait_s, set(nodes)
        while missing:
            if time.monotonic() > end:
                named = [node for node in nodes if node in missing]
                raise RankFault(
                    f"{len(named)} of {len(nodes)} nodes did not join the Ray cluster within {wait_s:g} s: {', '.join(named)}"
                )
            with suppress(Exception):  # whatever part of it is not there yet
                if not ray.is_initialized():
                    _check_reachable(address)
                    ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
                missing = set(nodes) - {node["NodeName"] for node in ray.nodes() if node["Alive"]}
            time.sleep(LOOK_S)
        yield


def _check_reachable(address: str) -> None:
    """Finds in a second what Ray tries for long. Raises OSError where nobody listens, ConfigError where our token is refused."""
    if (place := _host_and_port(address.removeprefix("ray://"))) is None:
        return
    socket.create_connection(place, timeout=CONNECT_S).close()
    if "://" in address:
        return
    import ray.exceptions
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue] (compiled)

    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        raise ConfigError(
            f"--address {address}: the Ray cluster there asks for another token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
            "the one that it was started with"
        ) from None


def _head_address() -> tuple[str, int] | None:
    """Where the head of the cluster listens; None where this process only talks to a proxy (`ray://`), which tells by itself."""
    import ray

    return _host_and_port(str(getattr(ray.get_runtime_context(), "gcs_address", "") or ""))


def _host_and_port(address: str) -> tuple[str, int] | None:
    host, _, port = address.rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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


def _sees(path: str) -> bool:
    return Path(path).exists()


def _call(function: Callable[[Task], Result], task: Task) -> tuple[str, Result]:
    """(this machine's name, result)."""
    one_thread()
    return socket.gethostname(), function(task)
