"""A Ray cluster inside one Slurm job, for `pretrain prepare`: what slurm/prepare.sbatch starts on its nodes, and asks.

    python -m launch.ray_cluster begin -- CONFIG [--set FIELD=VALUE ...]
                                                       host and port of the head, which will run here; or what is wrong already
    python -m launch.ray_cluster head --address A      one of them on each node, in the foreground, until it is told to end
    python -m launch.ray_cluster worker --address A
    python -m launch.ray_cluster driver --address A --nodes NODE ... -- CONFIG [--set FIELD=VALUE ...]
    python -m launch.ray_cluster ended --code N [--asked] -- CONFIG [--set FIELD=VALUE ...]

The cluster is the job's alone: a token of its own (RAY_AUTH_TOKEN, which the script makes), no dashboard, no usage reports, no
server for clients from outside; every server listens on one address of its node, that of PRETRAIN_INTERFACE or the one that the
node's name resolves to (`launch.own_address`). Ray's files lie in a folder of the job's own, and go with it.

A worker that dies costs only what it was at: Ray gives that to others. Without the head nothing goes on, and the job starts anew;
finished tasks are kept. `ended` says what the job does next, in one line (`requeue CODE` or `stop CODE`), and why, on stderr and
as a row of kind `preparation` in the run's events.jsonl, by which faults are counted.

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
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

from launch.cli import build_parser, exit_code_of
from launch.own_address import CannotHold, address_of_node, start_held_to
from pretrain.config import RunConfig, load_config
from pretrain.errors import CheckpointError, ConfigError, DataError, Interrupted, Preempted, RankFault, StorageError
from pretrain.files import append_json_line, read_json_lines, told_as_storage_error
from pretrain.metrics.jsonl import EVENTS_FILE

START_S = 240.0
"""All nodes have joined by then, or the job is given back. Ray comes up in 10 s, or in minutes where a file system is busy."""
OBJECT_STORE_BYTES = 128 << 20
"""As data_prep.ray_tasks: settings and hashes."""
TOKEN, AUTH_MODE = "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"
SOCKET_PATH_BYTES = 107
"""Of a Unix socket's name, a limit of Linux."""
_SESSION = "/session_2026-12-31_23-59-59_999999_4194304/sockets/plasma_store"
"""What Ray puts behind its folder for the longest of them."""
_TOLD_LINES = 15
_STOPS = (signal.SIGUSR1, signal.SIGTERM)
_FINAL = {error.exit_code for error in (ConfigError, DataError, CheckpointError, StorageError, Interrupted)}
"""Exit codes that the same command would end with again."""

Role = Literal["head", "worker"]


# where


def _here() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _own_address() -> str:
    return address_of_node(_here(), os.environ.get("PRETRAIN_INTERFACE"))


def port_of(job: int, restart: int) -> int:
    """The head's port at a start of a job: below Linux's ephemeral ports, another one at each restart."""
    return 20_000 + 10 * ((job + 331 * restart) % 1_000) + 2


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
    folder = ray_folder(os.environ.get("PRETRAIN_SCRATCH"), _job()[0])
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
    return ([line for line in lines if "ERR" in line or "Error" in line] or lines)[-_TOLD_LINES:]


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

    chosen, config = _understood([*arguments, "--backend", "ray", "--address", address])
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


# what comes next


@dataclass(frozen=True)
class Decision:
    """What the job does after the preparation has ended."""

    action: Literal["requeue", "stop"]
    exit_code: int
    message: str
    faults: int = 0
    """In a row, without a newly finished task, this one included."""


def decide(code: int, asked: bool, policy: str, faults: int, max_faults: int) -> Decision:
    """What to do after the driver has ended.

    Args:
        code: of the driver, or what srun made of it.
        asked: the job was told to give its nodes back.
        policy: PRETRAIN_REQUEUE.
        faults: in a row before this one, without a newly finished task.
        max_faults: how many of them a job may have.
    """
    if code == 0 or code in _FINAL:
        return Decision("stop", code, "done" if code == 0 else "stops: it would end the same way again")
    if asked or code == Preempted.exit_code:
        return _again(Decision("requeue", Preempted.exit_code, "preempted"), policy)
    told = f"fault {faults + 1} of {max_faults} without a newly finished task (exit code {code})"
    if faults + 1 > max_faults:
        return Decision("stop", RankFault.exit_code, f"given up, {told}", faults + 1)
    return _again(Decision("requeue", RankFault.exit_code, told, faults + 1), policy)


def _again(decision: Decision, policy: str) -> Decision:
    if policy == "requeue":
        return Decision("requeue", decision.exit_code, f"to be queued again: {decision.message}", decision.faults)
    return Decision("stop", decision.exit_code, f"ends, to be submitted again: {decision.message}", decision.faults)


def ended(code: int, asked: bool, arguments: Sequence[str]) -> int:
    """Prints what the job does next, and notes why. Raises nothing: a job that cannot note it stops with the driver's code."""
    policy, limit = os.environ.get("PRETRAIN_REQUEUE") or "requeue", os.environ.get("PRETRAIN_MAX_FAULTS") or "3"
    try:
        events, finished = _events_and_finished(arguments)
        before = [row for row in read_json_lines(events) if row.get("kind") == "preparation"][-1:]
        row = before[0] if before and before[0].get("finished") == finished else {}
        decision = decide(code, asked, policy, int(row.get("faults", 0)), int(limit))
        job, restart = _job()
        note = {"exit_code": decision.exit_code, "faults": decision.faults, "finished": finished}
        append_json_line(
            events,
            {
                "kind": "preparation",
                "message": decision.message,
                **note,
                "job": job,
                "restart": restart,
                "time": time.time(),
            },
        )
    except (ConfigError, DataError, StorageError, OSError, ValueError) as error:
        decision = Decision("stop", code, f"stops, for what comes next cannot be noted: {error}")
    print(f"job {os.environ.get('SLURM_JOB_ID')}: {decision.message}", file=sys.stderr, flush=True)
    print(decision.action, decision.exit_code)
    return 0


def _events_and_finished(arguments: Sequence[str]) -> tuple[Path, int]:
    """The file of the run's events, and how many tasks of its preparation are finished."""
    from data_prep.folder import RECORDS_NAME

    _, config = _understood(arguments)
    run_dir = Path(os.environ.get("PRETRAIN_RUN_DIR") or config.run_dir)
    return run_dir / EVENTS_FILE, sum(1 for _ in (config.data.folder / RECORDS_NAME).glob("*/*.npz"))


def _job() -> tuple[int, int]:
    """(number, restarts) of the Slurm job. Raises ConfigError outside of one."""
    with suppress(KeyError, ValueError):
        return int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    raise ConfigError("SLURM_JOB_ID is not set: this runs inside a job of slurm/prepare.sbatch")


def begin(arguments: Sequence[str]) -> str:
    """`host:port` of the head of this job's cluster, on whose node this runs.

    Raises ConfigError or DataError for all that can be told before there is a cluster.
    """
    from data_prep.folder import finished_manifest
    from launch.commands import check_preparation

    job, restart = _job()
    ray_folder(os.environ.get("PRETRAIN_SCRATCH"), job)
    _, config = _understood(arguments)
    check_preparation(config)
    finished_manifest(config.data)
    return f"{_own_address()}:{port_of(job, restart)}"


def _understood(arguments: Sequence[str]) -> tuple[argparse.Namespace, RunConfig]:
    """The command line of `pretrain prepare`, and its config. Raises ConfigError."""
    chosen = build_parser().parse_args(["prepare", *arguments])
    return chosen, load_config(chosen.config, chosen.overrides)


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
