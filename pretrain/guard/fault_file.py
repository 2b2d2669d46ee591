"""How a rank ended, written where the launcher looks: exit codes alone carry neither the message nor which rank was first.

Each rank has one file, `logs/gen-G/rank-R.fault.json` in the run's folder, written atomically when it ends by an exception.
`run_rank` is the whole of a rank's outermost frame:

    leave(run_rank(lambda: train(config), run_dir, generation, rank))

A rank that ended in good order before the run's end (preempted, Ctrl-C) exits 0 under a launcher, so that peers which still
write are not stopped; the launcher takes the code from the file. Without a launcher the process itself has the code.
"""

import contextlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from pretrain.errors import Interrupted, Preempted, PretrainError, RankFault, StorageError
from pretrain.files import storage_error, write_atomically
from pretrain.guard.parent import LAUNCHER_PID

GRACEFUL = (Preempted, Interrupted)

_CONNECTION = re.compile(
    r"gloo/transport|gloo connect|connection (was )?(closed|reset|refused)|closed by peer|broken pipe|ncclRemoteError"
    r"|remote process exited|DistNetworkError|DistStoreError|NCCL communicator was aborted",
    re.IGNORECASE,
)
"""What gloo, NCCL and the store say when a peer is gone."""


@dataclass(frozen=True)
class Fault:
    """The end of a rank."""

    rank: int
    exit_code: int
    kind: str
    """Class of the exception."""
    message: str
    time: float
    """Seconds since the epoch: which of several ranks was first."""


def logs_folder(run_dir: Path, generation: int) -> Path:
    """Where the ranks of one launch log."""
    return run_dir / "logs" / f"gen-{generation}"


def fault_path(run_dir: Path, generation: int, rank: int) -> Path:
    """The file of a rank."""
    return logs_folder(run_dir, generation) / f"rank-{rank}.fault.json"


def write_fault(run_dir: Path, generation: int, rank: int, error: BaseException) -> Fault:
    """Writes a rank's end; a full disk loses it silently, the process's exit code then has to do."""
    told = as_told(error)
    fault = Fault(rank, told.exit_code, type(error).__name__, str(told), time.time())
    try:
        write_atomically(fault_path(run_dir, generation, rank), json.dumps(asdict(fault)) + "\n")
    except (StorageError, OSError):
        # The log may lie on the same full disk.
        with contextlib.suppress(OSError):
            print(f"rank {rank}: {fault.kind}: {fault.message}", file=sys.stderr, flush=True)
    return fault


def as_told(error: BaseException) -> PretrainError:
    """The error that a user is told: itself, a storage error for a full disk or a missing permission, else a rank's fault."""
    if isinstance(error, PretrainError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped by Ctrl-C before the first step")
    told = storage_error(error) if isinstance(error, OSError) else None
    text = " ".join(str(error).split())
    return told or RankFault(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def read_faults(run_dir: Path, generation: int) -> list[Fault]:
    """The ends that the ranks of one launch wrote, the first first. Unreadable files are left out."""
    found = []
    for path in logs_folder(run_dir, generation).glob("rank-*.fault.json"):
        try:
            found.append(Fault(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda fault: fault.time)


def speaks_of_peer(told: str) -> bool:
    """Whether an error is one of the connection to another rank: its end then is the cause, and this one's a consequence."""
    return _CONNECTION.search(told) is not None


def run_rank(work: Callable[[], None], run_dir: Path, generation: int, rank: int) -> int:
    """Runs a rank's work and returns its process's exit code. Only a fault of the program prints a traceback."""
    try:
        work()
    except SystemExit:
        raise
    except BaseException as error:
        fault = write_fault(run_dir, generation, rank, error)
        under_launcher = LAUNCHER_PID in os.environ
        if not isinstance(error, PretrainError | KeyboardInterrupt) and fault.exit_code == RankFault.exit_code:
            # Rank 0 has the terminal, where a consequence should not look like the cause that the launcher tells.
            if not (under_launcher and rank == 0 and speaks_of_peer(f"{fault.kind} {fault.message}")):
                traceback.print_exc()
        elif not under_launcher and rank == 0:
            print(f"error: {fault.message}", file=sys.stderr)
        return 0 if under_launcher and isinstance(error, GRACEFUL) else fault.exit_code
    return 0


def leave(exit_code: int) -> NoReturn:
    """Ends the process at once; what has to be closed was closed before.

    The interpreter's own way takes torch and DeepSpeed apart for a second, while peers of a dead rank are waited for, and
    the time of a preempted job runs.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(exit_code)
