"""A launcher in a process of its own, with ranks from ranks.py.

The process is forked from a server that has imported torch's elastic agent once: a launcher a test would take seconds each.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

RANK_COMMAND = (sys.executable, str(Path(__file__).with_name("ranks.py")))
PATIENCE_S = 60.0

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["launch.rendezvous", "launch.torchrun"])


def drive(
    config: str, environment: Mapping[str, str], error_file: str, terminal: str | None, node: tuple[int, str] | None
) -> None:
    """The launcher's process: in a session of its own, on a terminal of its own where one is given."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell ignores Ctrl-C
    os.environ.clear()
    os.environ.update(environment)
    if terminal is not None:
        os.login_tty(os.open(terminal, os.O_RDWR))
    else:
        os.setsid()
    os.dup2(os.open(error_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)

    from launch.cli import exit_code_of
    from launch.nodes import Nodes
    from launch.torchrun import Launch, run
    from pretrain.config import load_config
    from pretrain.resolve import World

    nodes = Nodes() if node is None else Nodes(2, *node)
    launch = Launch(World(2, nodes.count), nodes, rank_command=RANK_COMMAND, again="pretrain train AGAIN")

    def work() -> None:
        run(load_config(config), launch)

    os._exit(exit_code_of(work))


class Launcher:
    """A launcher process with two ranks of a mode."""

    def __init__(
        self,
        config_file: Path,
        run_dir: Path,
        mode: str,
        errors: Path,
        terminal: str | None = None,
        node: tuple[int, str] | None = None,
    ):
        self.run_dir, self.errors = run_dir, errors
        environment = {**os.environ, "FAKE_RANK": mode}
        self.process = _SERVER.Process(target=drive, args=(str(config_file), environment, str(errors), terminal, node))
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def send(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def wait_for_ranks(self) -> list[int]:
        """Process ids of both ranks, once their handlers stand."""
        files = [self.run_dir / f"rank-{rank}.started" for rank in (0, 1)]
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
