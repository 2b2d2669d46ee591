"""From how ranks ended to the one error that the user is told.

When one rank fails its peers fail too, of it: a closed socket, a collective that is aborted, SIGTERM from the agent. The cause is
looked for in this order: a signal from outside (SIGKILL, a crash), an error that names a user's mistake or a resource, any
other exception, and last an abort; among equals the one that came first.
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from launch.ranks import Ended
from pretrain.errors import (
    CheckFailed,
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    Preempted,
    PretrainError,
    RankFault,
    StorageError,
)
from pretrain.guard.fault_file import Fault, logs_folder

_ERRORS = {
    kind.exit_code: kind
    for kind in (CheckFailed, ConfigError, DataError, CheckpointError, StorageError, RankFault, Preempted, Interrupted)
}
_GRACEFUL = (Preempted.exit_code, Interrupted.exit_code)
_OF_USERS = {ConfigError.exit_code: "config", DataError.exit_code: "data", CheckpointError.exit_code: "checkpoint"} | {
    StorageError.exit_code: "disk full, or a folder that cannot be written"
}
"""Exit codes that name a user's mistake or a resource, and what they mean where a rank could not write its message."""
_OF_PEERS = (-signal.SIGTERM, -signal.SIGABRT)
"""Ways to end that a peer's death causes: the agent's stop, and a library that aborts a collective."""

_HINTS = {
    signal.SIGKILL: "the kernel's out-of-memory killer does this, or someone's kill; `dmesg` tells which",
    signal.SIGSEGV: "a crash in native code",
    signal.SIGBUS: "a file that was cut while mapped, or a full /dev/shm",
    signal.SIGILL: "a library built for another processor",
    signal.SIGFPE: "a crash in native code",
}


def error_of(ended: Ended, faults: Sequence[Fault], run_dir: Path, again: str) -> PretrainError | None:
    """The error that stands for a launch; None where every rank reached the end of the run.

    Args:
        ended: exits of this node's ranks, the first first.
        faults: what ranks wrote of their ends, the first first.
        run_dir: of the run, for the places of the logs.
        again: the command that continues the run.
    """
    if ended.killed_by_user:
        return Interrupted(f"stopped now by Ctrl-C; what came after the last checkpoint is lost\ncontinue: {again}")
    if not ended.exits:
        graceful = [fault for fault in faults if fault.exit_code in _GRACEFUL]
        return _ERRORS[graceful[0].exit_code](f"{graceful[0].message}\ncontinue: {again}") if graceful else None
    told = {fault.rank: fault for fault in faults}
    rank = min(ended.exits, key=lambda r: (_order(ended.exits[r], told.get(r)), list(ended.exits).index(r)))
    causes = [fault for fault in faults if _order(fault.exit_code, fault) < _order(ended.exits[rank], told.get(rank))]
    if causes:
        return _from_fault(causes[0], ended.generation, run_dir, again)
    if rank in told and ended.exits[rank] > 0:
        first = next(f for f in faults if _order(f.exit_code, f) == _order(ended.exits[rank], told[rank]))
        return _from_fault(first, ended.generation, run_dir, again)
    return _from_exit(rank, ended, run_dir, again)


def _order(code: int, fault: Fault | None) -> int:
    """Where an end stands in the search for the cause, the likeliest cause first."""
    if code < 0:
        return 3 if code in _OF_PEERS else 0
    if (fault.exit_code if fault is not None else code) in _OF_USERS:
        return 1
    return 2


def _from_fault(fault: Fault, generation: int, run_dir: Path, again: str) -> PretrainError:
    kind = _ERRORS.get(fault.exit_code, RankFault)
    if kind is not RankFault:
        return kind(fault.message)
    return RankFault(
        f"rank {fault.rank}: {fault.message}{_log(fault.rank, generation, run_dir)}\n"
        f"the run stands at its last checkpoint; continue: {again}"
    )


def _from_exit(rank: int, ended: Ended, run_dir: Path, again: str) -> PretrainError:
    code = ended.exits[rank]
    if code == -signal.SIGTERM and signal.SIGTERM in ended.forwarded:
        return Preempted(f"SIGTERM came before the ranks could save\ncontinue: {again}")
    if code in _OF_USERS:
        told = f"rank {rank} ended with exit code {code} ({_OF_USERS[code]}) and could not write why"
        return _ERRORS[code](f"{told}{_log(rank, ended.generation, run_dir)}\ncontinue: {again}")
    if code < 0:
        hint = _HINTS.get(signal.Signals(-code))
        cause = f"was killed by {signal.Signals(-code).name}" + (f" ({hint})" if hint else "")
    else:
        cause = f"ended with exit code {code} and left no word"
    return RankFault(
        f"rank {rank} {cause}{_log(rank, ended.generation, run_dir)}\n"
        f"the run stands at its last checkpoint; continue: {again}"
    )


def _log(rank: int, generation: int, run_dir: Path) -> str:
    """Where the rank's output is; rank 0's went to the terminal."""
    return f"; its log: {logs_folder(run_dir, generation) / f'rank-{rank}.log'}" if rank else ""
