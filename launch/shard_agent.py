"""The shard agent of a node: keeps the node's cache of token shards ahead of what the run's order will ask for.

    with shard_agent(config, address):      # in the launcher, around the ranks
        run_ranks(...)

One agent a node, not one a rank: thousands of ranks must not become clients of a store, or drivers of Ray. On a Ray cluster (the
one that RAY_ADDRESS names) it is an actor that is bound to this node; without one it is a child of the launcher. It computes from
the run's config which shards the coming steps read, as every rank does, so nobody tells it; ranks leave their step in a file
(`pretrain.data.local_shards`). An agent that dies is started again; ranks that wait for a shard go on waiting meanwhile.
"""

import argparse
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from launch.lock import only_user_of_cache
from launch.shard_cache import Needed, ShardCache, cache_folder, fetch_frame
from pretrain.checkpoint.format import latest_checkpoint, read_marker, read_metadata
from pretrain.config import RunConfig, read_resolved, write_resolved
from pretrain.data.cache_settings import CacheSettings
from pretrain.data.local_shards import forget_last_run, is_cached
from pretrain.data.manifest import read_manifest
from pretrain.data.needed_shards import NeededShards
from pretrain.data.plan import build_plan
from pretrain.data.plan_segments import first_segment
from pretrain.errors import ConfigError, DataError, PretrainError, RankFault
from pretrain.guard.parent import LAUNCHER_PID, die_with_parent

ROUND_S = 0.05
BEAT_S = 1.0
CONFIG_PLACE = ".run"
"""Folder within the cache that holds the run's config: node 0 alone writes that of the run's folder."""
START_S = 120.0
RESTART_S = 1.0


@contextmanager
def localized(config: RunConfig) -> Iterator[tuple[RunConfig, str]]:
    """The config with `data.dir` on this node's disk where it asks for a cache, and the address of the data.

    What the data folder has beside its shards is fetched; within it the cache is this run's alone. Raises ConfigError where it
    serves another run, DataError, StorageError.
    """
    address, cache = config.data.dir, config.data.cache
    if cache is None:
        check_local(config)
        yield config, address
        return
    address = address if "://" in address else os.path.abspath(config.data_dir)  # noqa: PTH100 (links are kept)
    folder = cache_folder(address, cache.dir)
    with only_user_of_cache(folder):
        forget_last_run(folder)
        fetch_frame(address, folder)
        yield config.model_copy(update={"data": config.data.model_copy(update={"dir": str(folder)})}), address


def check_local(config: RunConfig) -> None:
    """Raises ConfigError where `data.dir` is an address: what is written, or read without a cache, is a folder."""
    if "://" in config.data.dir:
        raise ConfigError(
            f"data.dir={config.data.dir} is an address, which is read through a cache alone and never written to; set "
            "data.cache.dir to train from it, or prepare into a local folder and copy that to the store"
        )


@contextmanager
def shard_agent(config: RunConfig, address: str) -> Iterator[None]:
    """Within it the cache of a resolved run, which is localized, is served; without `data.cache` nothing happens.

    Raises DataError where the agent cannot begin, RankFault where it does not start.
    """
    cache = config.data.cache
    if cache is None:
        yield
        return
    folder = config.data.folder
    write_resolved(config, folder / CONFIG_PLACE)
    keeper = _Keeper(_agent(cache, folder, address), folder)
    keeper.start()
    try:
        keeper.wait_until_it_serves()
        yield
    finally:
        keeper.close()


class Agent(Protocol):
    """Where an agent runs."""

    def serve(self) -> str | None:
        """Starts it and returns when it ends: None where it was stopped, else why."""
        ...

    def stop(self) -> None:
        """Asks it to end."""
        ...


def _agent(cache: CacheSettings, folder: Path, address: str) -> Agent:
    ray_address = os.environ.get("RAY_ADDRESS")
    if cache.agent == "ray" and not ray_address:
        raise DataError("data.cache.agent=ray: RAY_ADDRESS names no cluster; set it, or take data.cache.agent=process")
    if cache.agent == "process" or not ray_address:
        return _ProcessAgent(folder, address)
    return _RayAgent(ray_address, folder, address)


class _Keeper(threading.Thread):
    """Starts an agent again when it dies."""

    def __init__(self, agent: Agent, folder: Path) -> None:
        super().__init__(name="shard-agent", daemon=True)
        self._agent, self._folder = agent, folder
        self._closing = threading.Event()
        self._told: str | None = None

    def run(self) -> None:
        """Until it is closed."""
        while not self._closing.is_set():
            try:
                self._told = self._agent.serve() or "it ended"
            except PretrainError as error:
                self._told = str(error)
            if not self._closing.wait(RESTART_S):
                print(f"the shard agent of this node is started again: {self._told}", file=sys.stderr, flush=True)

    def wait_until_it_serves(self) -> None:
        """Returns at the agent's first sign of life. Raises RankFault where none comes."""
        deadline = time.monotonic() + START_S
        while not is_cached(self._folder):
            if self._told is not None or time.monotonic() > deadline:
                raise RankFault(
                    f"the shard agent of this node does not start: {self._told or f'silent for {START_S:.0f} s'}"
                )
            time.sleep(ROUND_S)

    def close(self) -> None:
        self._closing.set()
        self._agent.stop()
        self.join()


class _ProcessAgent:
    """A child of the launcher; it dies with it."""

    def __init__(self, folder: Path, address: str) -> None:
        self._command = [sys.executable, "-m", "launch.shard_agent", "--cache", str(folder), "--address", address]
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def serve(self) -> str | None:
        """See Agent."""
        variables = {**os.environ, LAUNCHER_PID: str(os.getpid())}
        self._process = subprocess.Popen(
            self._command, env=variables, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        if self._stopped:
            self._process.terminate()
        _, told = self._process.communicate()
        last = told.strip().splitlines()[-1:] or [""]
        return f"exit code {self._process.returncode}: {last[0]}".rstrip(": ")

    def stop(self) -> None:
        """See Agent."""
        self._stopped = True
        if self._process is not None:
            self._process.terminate()


class _RayAgent:
    """An actor on this node of a Ray cluster."""

    def __init__(self, cluster: str, folder: Path, address: str) -> None:
        self._cluster, self._folder, self._address = cluster, folder, address
        self._actor: Any = None
        self._connected = False

    def serve(self) -> str | None:
        """See Agent."""
        import ray
        import ray.exceptions
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        try:
            if not ray.is_initialized():
                ray.init(address=self._cluster, log_to_driver=False, logging_level=logging.ERROR)
                self._connected = True
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            # Two calls at once: the loop, and the one that ends it.
            bound: Any = ray.remote(Server)
            self._actor = bound.options(num_cpus=0, max_concurrency=2, scheduling_strategy=here).remote()
            return ray.get(self._actor.serve.remote(self._folder, self._address))
        except (ray.exceptions.RayError, ConnectionError, RuntimeError) as error:
            return str(error).strip().splitlines()[-1]

    def stop(self) -> None:
        """See Agent."""
        import ray
        import ray.exceptions

        if self._actor is not None:
            with suppress(ray.exceptions.RayError):  # it may be gone already
                ray.get(self._actor.stop.remote(), timeout=10)
            ray.kill(self._actor)
        if self._connected:
            ray.shutdown()


class Server:
    """The loop of an agent."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def serve(self, folder: Path, address: str) -> str | None:
        """Serves a cache folder until it is stopped. Raises DataError, StorageError."""
        config = read_resolved(folder / CONFIG_PLACE)
        settings = config.data.cache
        assert settings is not None, "the launcher starts an agent where the config asks for one"
        reached = latest_checkpoint(config.run_dir)
        cache = ShardCache(
            address, folder, int(settings.gib * 2**30), settings.lookahead_steps, _files_of_steps(config)
        )
        beaten = 0.0
        try:
            while not self._stop.wait(ROUND_S):
                if time.monotonic() - beaten > BEAT_S:
                    cache.beat()
                    beaten = time.monotonic()
                cache.work(reached.step if reached else 0)
        finally:
            cache.close()
        return None

    def stop(self) -> None:
        """Ends the loop."""
        self._stop.set()


def _files_of_steps(config: RunConfig) -> Needed:
    """What each step of a run reads, by the manifest as it is now."""
    manifest = read_manifest(config.data.folder)
    plan, size = build_plan(config.data, manifest, config.run.seed, {}), config.global_batch_sequences
    reached = latest_checkpoint(config.run_dir)
    segments = () if reached is None else read_metadata(reached, read_marker(reached)).state.segments
    segment = segments[-1] if segments else first_segment(plan, size)
    needed = NeededShards(plan.from_origin(segment.origin), manifest)

    def files(step: int) -> Sequence[str]:
        return needed.files(segment.place(segment.sample(step)), size) if step < config.train.steps else ()

    return files


def main(arguments: Sequence[str] | None = None) -> int:
    """An agent as a process."""
    import signal

    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m launch.shard_agent", description="The shard agent of a node.")
    parser.add_argument("--cache", required=True, type=Path, help="the cache folder of the data set")
    parser.add_argument("--address", required=True, help="where the data lie")
    chosen = parser.parse_args(arguments)
    server = Server()
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher ends it, when the ranks have saved
    try:
        server.serve(chosen.cache, chosen.address)
    except PretrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
