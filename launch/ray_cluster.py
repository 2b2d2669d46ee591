"""A Ray cluster inside one Slurm job, for `pretrain prepare`: what slurm/prepare.sbatch starts on its nodes, and asks.

    python -m launch.ray_cluster begin -- CONFIG [--set FIELD=VALUE ...]
                                                       host and port of the head, which will run here; or what is wrong already
    python -m launch.ray_cluster head --address A      one of them on each node, in the foreground, until it is told to end
    python -m launch.ray_cluster worker --address A
    python -m launch.ray_cluster driver --address A --nodes NODE ... -- CONFIG [--set FIELD=VALUE ...]
    python -m launch.ray_cluster ended --code N [--asked] -- CONFIG [--set FIELD=VALUE ...]

The cluster is the job's alone: a token of its own (RAY_AUTH_TOKEN, which the script makes), no dashboard, no usage reports; every
server listens on one address of its node, that of PRETRAIN_INTERFACE or the one that the node's name resolves to
(`launch.own_address`). Ray's files lie in a folder of the job's own, and go with it where it ends well.

A worker that dies costs only what it was at: Ray gives that to others. Without the head nothing goes on, and the job starts anew;
finished tasks are kept. `ended` says what the job does next, in one line (`requeue CODE` or `stop CODE`; `launch.ray_endings`).

Not taken: `ray symmetric-run` (it ends with 0 where `ray start` failed, and waits no longer than 30 s for nodes), `ray up`
(autoscaler, needs ssh).
"""

import argparse
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

from launch.cli import exit_code_of
from launch.own_address import CannotHold, address_of_node, start_held_to
from launch.ray_endings import ended, job_and_restart, understood
from launch.slurm_job import port_of
from pretrain.errors import ConfigError, Preempted, RankFault
from pretrain.files import told_as_storage_error

START_S = 240.0
"""All nodes have joined by then, or the job is given back. Ray comes up in 10 s, or in minutes where a file system is busy."""
OBJECT_STORE_BYTES = 128 << 20
"""As data_prep.ray_tasks: settings and hashes."""
PORT_SLOT = 2
"""Which of a job's ports is the head's; the next is that of Ray's server for clients."""
TOKEN, AUTH_MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"
SOCKET_PATH_BYTES = 107
"""Of a Unix socket's name, a limit of Linux."""
_SESSION = "/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
"""What Ray puts behind its folder for the longest of them."""
_TOLD_LINES = 15
_STOPS = (signal.SIGUSR1, signal.SIGTERM)
Role = Literal["head", "worker"]


# where


def _here() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _own_address() -> str:
    return address_of_node(_here(), os.environ.get("PRETRAIN_INTERFACE"))


def ray_folder(scratch: str | None, job: int) -> Path:
    """Where Ray keeps sockets and logs on each node. Raises ConfigError where its sockets' names would be too long."""
    folder = Path(scratch or "/tmp") / f"ray{job}"
    over = len(os.fsencode(folder / "r")) + len(_SESSION) - SOCKET_PATH_BYTES
    if over > 0:
        raise ConfigError(
            f"PRETRAIN_SCRATCH={scratch}: Ray's sockets would lie there under names that are {over} bytes too long for Linux; "
            "name a shorter path (a symbolic link may be one), or none for /tmp"
        )
    return folder


def _new_folder(folder: Path) -> None:
    """Makes a folder that nobody else may enter. Raises StorageError."""
    with told_as_storage_error(folder):
        if folder.is_dir() and not folder.is_symlink():  # of an earlier start of this job that was killed
            shutil.rmtree(folder)
        folder.mkdir(mode=0o700, parents=True)


# what runs


def ray_command(role: Role, address: str, own: str, name: str, cores: int, folder: Path) -> list[str]:
    """The command line of a node of the cluster: no secret in it.

    Args:
        role: of the node.
        address: `host:port` of the head.
        own: the node's own address.
        name: of the node, by which it is waited for.
        cores: tasks at once.
        folder: where Ray keeps its files.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--node-ip-address={own}"]
    if role == "head":
        command += ["--head", f"--port={address.rpartition(':')[2]}", "--include-dashboard=false", "--no-monitor"]
        if (
            find_spec("grpc") is not None
        ):  # ray[client]: its server cannot be left out, but moved from the port that all share
            command += [f"--ray-client-server-port={int(address.rpartition(':')[2]) + 1}"]
    else:
        command += [f"--address={address}"]
    return [
        *command, f"--node-name={name}", f"--num-cpus={cores}", "--num-gpus=0", f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0", "--disable-usage-stats",
        "--include-log-monitor=false",
        f"--temp-dir={folder}",
    ]  # fmt: skip


def ray_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the cluster's processes. Raises ConfigError where the job has no token."""
    if not environment.get(TOKEN):
        raise ConfigError(f"{TOKEN} is not set: a Ray cluster of a job has a token, which slurm/prepare.sbatch makes")
    kept = {name: value for name, value in environment.items() if name != "RAY_ADDRESS"}
    ours = {AUTH_MODE: "token", "RAY_USAGE_STATS_ENABLED": "0", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    return kept | ours


def cores_of_node(environment: Mapping[str, str]) -> int:
    """Cores that the job has on this node."""
    usable = len(os.sched_getaffinity(0))
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    return max(1, min(usable, int(given))) if given.isdigit() else usable


def run_node(role: Role, address: str) -> int:
    """A node of the cluster, until it is told to end (TERM, USR1).

    Raises ConfigError, StorageError, and RankFault where Ray ends by itself.
    """
    if find_spec("ray") is None:
        raise ConfigError(f"ray is not installed on {_here()}; pip install ray")
    own, cores = _own_address(), cores_of_node(os.environ)
    environment = ray_environment(os.environ)
    folder = ray_folder(os.environ.get("PRETRAIN_SCRATCH"), job_and_restart()[0])
    _new_folder(folder)
    said = folder / "said"
    with said.open("wb") as output:
        print(f"{_here()}: a Ray {role} of {cores} cores at {own}", file=sys.stderr, flush=True)
        command = ray_command(role, address, own, _here(), cores, folder / "r")
        process = _start(own, command, environment, output.fileno())
    with _passed_on({signal.SIGTERM: signal.SIGTERM, signal.SIGUSR1: signal.SIGTERM}, process) as told:
        code = process.wait()
    if not told:
        # Its files stay: the driver may still be at work, and people want to look.
        why = "\n  ".join(last_words(said.read_text(errors="replace")))
        raise RankFault(f"the Ray {role} on {_here()} ended with {code}; its files are in {folder} there\n  {why}")
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def last_words(said: str) -> list[str]:
    """Of what `ray start` said, the errors, or where there are none, the last lines."""
    lines = [line for line in said.splitlines() if line.strip()]
    return ([line for line in lines if ("ERR" in line or "Error" in line) and "-----" not in line] or lines)[
        -_TOLD_LINES:
    ]


def run_driver(address: str, nodes: Sequence[str], arguments: Sequence[str]) -> int:
    """`pretrain prepare` on the cluster; returns its exit code. USR1 and TERM end it in good order, with 75."""
    command = [
        sys.executable,
        "-m",
        "launch.ray_cluster",
        "prepare",
        "--address",
        address,
        "--nodes",
        *nodes,
        "--",
        *arguments,
    ]
    own = _own_address()
    process = _start(own, command, ray_environment(os.environ), None)
    with _passed_on({signal.SIGTERM: signal.SIGUSR1, signal.SIGUSR1: signal.SIGUSR1}, process):
        code = process.wait()
    return code if code >= 0 else 128 - code


def _start(
    own: str, command: Sequence[str], environment: Mapping[str, str], output: int | None
) -> "subprocess.Popen[Any]":
    """Starts a command in a session of its own; its servers are held to our address, or it is said that they are not."""
    how: dict[str, Any] = {"stdout": output, "stderr": output, "stdin": subprocess.DEVNULL}
    how |= {"env": dict(environment), "start_new_session": True}
    try:
        return start_held_to(own, command, **how)
    except CannotHold as error:
        print(
            f"{_here()}: Ray listens on every address of the node, not on {own} alone, guarded by the job's token: {error}",
            file=sys.stderr,
            flush=True,
        )
        return subprocess.Popen(command, **how)


@contextmanager
def _passed_on(
    signals: Mapping[signal.Signals, signal.Signals], process: "subprocess.Popen[Any]"
) -> Iterator[list[int]]:
    """Within it signals are handed on to a process, and ignored afterwards; the list grows by each that came."""
    came: list[int] = []

    def hand_on(number: int, _: object) -> None:
        came.append(number)
        process.send_signal(signals[signal.Signals(number)])

    for number in signals:
        signal.signal(number, hand_on)
    yield came
    _ignore(signals)


def prepare(address: str, nodes: Sequence[str], arguments: Sequence[str]) -> int:
    """`pretrain prepare` on a cluster that is being started, or at once where nothing is left to do."""
    _stop_on_signals()
    from data_prep.folder import finished_manifest

    chosen, config = understood([*arguments, "--backend", "ray", "--address", address])
    if finished_manifest(config.data) is not None:
        return chosen.handler(chosen) or 0
    from data_prep.ray_tasks import all_nodes

    with all_nodes(address, nodes, START_S):
        _stop_on_signals()  # Ray takes TERM as a crash
        print(f"{len(nodes)} nodes have joined the Ray cluster", file=sys.stderr, flush=True)
        return chosen.handler(chosen) or 0


def _stop_on_signals() -> None:
    for number in _STOPS:
        signal.signal(number, _stop)


def _stop(*_: object) -> NoReturn:
    for number in _STOPS:
        signal.signal(number, lambda *_: None)  # one that came with this one may still be told
    raise Preempted("told to stop; finished tasks are kept, and the same command goes on from there")


def _ignore(signals: Iterable[signal.Signals]) -> None:
    """Said again while the interpreter ends, a signal that has a handler would kill it."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)


def begin(arguments: Sequence[str]) -> str:
    """`host:port` of the head of this job's cluster, on whose node this runs.

    Raises ConfigError or DataError for all that can be told before there is a cluster.
    """
    from data_prep.folder import finished_manifest
    from launch.commands import check_preparation

    job, restart = job_and_restart()
    ray_folder(os.environ.get("PRETRAIN_SCRATCH"), job)
    _, config = understood(arguments)
    check_preparation(config)
    finished_manifest(config.data)
    return f"{_own_address()}:{port_of(job, restart, PORT_SLOT)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """One of the commands above."""
    parser = argparse.ArgumentParser(prog="python -m launch.ray_cluster", description="Ray inside a Slurm job.")
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("begin")
    for role in ("head", "worker", "driver", "prepare"):
        added = roles.add_parser(role)
        added.add_argument("--address", required=True)
        if role in ("driver", "prepare"):
            added.add_argument("--nodes", nargs="+", required=True)
    after = roles.add_parser("ended")
    after.add_argument("--code", type=int, required=True)
    after.add_argument("--asked", action="store_true")
    # What follows is for `pretrain prepare`; argparse.REMAINDER would take our own options with it.
    given = list(sys.argv[1:] if arguments is None else arguments)
    at = given.index("--") if "--" in given else len(given)
    chosen, rest = parser.parse_args(given[:at]), given[at + 1 :]

    def work() -> int:
        match chosen.role:
            case "begin":
                print(begin(rest))
                return 0
            case "driver":
                return run_driver(chosen.address, chosen.nodes, rest)
            case "prepare":
                try:
                    return prepare(chosen.address, chosen.nodes, rest)
                finally:
                    _ignore(_STOPS)
            case "ended":
                return ended(chosen.code, chosen.asked, rest)
            case role:
                return run_node(role, chosen.address)

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
