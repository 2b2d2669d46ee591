"""A launcher in a process of its own, with ranks from ranks.py.

The process is forked from a server that has imported torch's elastic agent once: a launcher a test would take seconds each.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.nodes import Nodes

RANK_COMMAND = (sys.executable, str(Path(__file__).with_name("ranks.py")))
PATIENCE_S = 60.0

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["launch.rendezvous", "launch.torchrun", "pretrain.engine.world"])


@dataclass(frozen=True)
class Way:
    """How a launcher is started."""

    mode: str
    """Of its ranks, see ranks.py."""
    terminal: str | None = None
    nodes: Nodes = field(default_factory=Nodes)
    max_restarts: int = 0
    overrides: tuple[str, ...] = ()
    deaf_to: signal.Signals | None = None
    """A signal that is ignored when it starts."""


def drive(config: str, environment: Mapping[str, str], error_file: str, way: Way) -> None:
    """The launcher's process: in a session of its own, on a terminal of its own where one is given."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell ignores Ctrl-C
    os.environ.clear()
    os.environ.update(environment)
    if way.deaf_to is not None:
        signal.signal(way.deaf_to, signal.SIG_IGN)
    if way.terminal is not None:
        os.login_tty(os.open(way.terminal, os.O_RDWR))
    else:
        os.setsid()
    os.dup2(os.open(error_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)

    from launch.cli import exit_code_of
    from launch.torchrun import Launch, run
    from pretrain.config import load_config
    from pretrain.resolve import World

    launch = Launch(
        World(2, way.nodes.count),
        way.nodes,
        rank_command=RANK_COMMAND,
        again="pretrain train AGAIN",
        max_restarts=way.max_restarts,
    )

    def work() -> None:
        run(load_config(config, way.overrides), launch)

    os._exit(exit_code_of(work))


class Launcher:
    """A launcher process with two ranks of a mode."""

    def __init__(self, config_file: Path, run_dir: Path, errors: Path, way: Way):
        self.run_dir, self.errors = run_dir, errors
        self.first_rank = 2 * (way.nodes.rank or 0)
        environment = {**os.environ, "FAKE_RANK": way.mode}
        self.process = SERVER.Process(target=drive, args=(str(config_file), environment, str(errors), way))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def wait_for_ranks(self) -> list[int]:
        """Process ids of both ranks, once their handlers stand."""
        files = [self.run_dir / f"rank-{self.first_rank + rank}.started" for rank in (0, 1)]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        return [int(file.read_text()) for file in files]

    def end(self) -> tuple[int | None, str]:
        """Exit code and stderr."""
        self.process.join(PATIENCE_S)
        return self.process.exitcode, self.errors.read_text()

    def close(self) -> None:
        """Kills it if it lives."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.join()


def wait_until(holds: Callable[[], bool]) -> None:
    """Returns once something holds; TimeoutError where it never does."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def free_port() -> int:
    """A port of 127.0.0.0/8 that nobody has."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_listening(endpoint: str) -> bool:
    """Whether somebody listens at HOST:PORT."""
    host, _, port = endpoint.rpartition(":")
    return (host, int(port)) in listeners()


def listeners() -> set[tuple[str, int]]:
    """Addresses at which anybody on this machine listens, as the kernel tells."""
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            place, state = line.split()[1], line.split()[3]
            if state == "0A":
                address, _, port = place.partition(":")
                words = [bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8)]
                found.add((socket.inet_ntop(family, b"".join(words)), int(port, 16)))
    return found
