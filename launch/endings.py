"""From how ranks ended to the one cause that the user is told, and whether the launch goes on.

When one rank fails its peers fail too, of it: a closed socket, a collective that is aborted, SIGTERM from the agent. The cause is
looked for in this order: a signal from outside (SIGKILL, a crash), an error that names a user's mistake or a resource, any
other exception, one that speaks of a peer's connection, and last an abort; among equals the one that came first. Clocks of
machines differ, so over nodes it is the kind that tells cause from consequence.
"""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.nodes import Nodes
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
from pretrain.guard.fault_file import Fault, logs_folder, speaks_of_peer

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


@dataclass(frozen=True)
class Cause:
    """Why ranks ended."""

    kind: type[PretrainError]
    told: str
    """The cause in a sentence."""
    rank: int | None = None
    """Of the culprit, where there is one."""

    def error(self, again: str) -> PretrainError:
        """What the launch ends with; `again` is the command that continues the run."""
        if self.kind is RankFault:
            return RankFault(f"{self.told}\nthe run stands at its last checkpoint; continue: {again}")
        return self.kind(f"{self.told}\ncontinue: {again}" if self.kind.exit_code in _GRACEFUL else self.told)


class LostNode(RankFault):
    """Machines that are not heard of any more."""

    def __init__(self, nodes: Sequence[str], after_s: float) -> None:
        super().__init__(
            f"{', '.join(nodes)}: not heard of for {after_s:.0f} s (the machine or network is gone, or the launcher was killed); "
            "a lost node cannot be replaced in place"
        )
        self.nodes = tuple(nodes)


@dataclass(frozen=True)
class Faults:
    """Faults in a row, without a new checkpoint in between."""

    count: int = 0
    step: int | None = None
    """Of the newest checkpoint when the last of them happened."""

    def one_more(self, step: int | None) -> "Faults":
        """After another fault, with the newest checkpoint at `step`."""
        is_new = step is not None and (self.step is None or step > self.step)
        return Faults(1 if is_new else self.count + 1, step)


def error_of_code(code: int, message: str) -> PretrainError:
    """The error that ends a command with a code of the house."""
    return _ERRORS.get(code, RankFault)(message)


def may_restart(cause: Cause, ended: Ended, faults: Faults, max_restarts: int) -> bool:
    """Whether ranks are started again in place: after a fault alone, and where nobody asked the run to end."""
    return cause.kind is RankFault and not ended.forwarded and faults.count <= max_restarts


def cause_of(ended: Ended, faults: Sequence[Fault], run_dir: Path, nodes: Nodes, local_ranks: int) -> Cause | None:
    """What ended the ranks; None where every rank reached the end of the run.

    Args:
        ended: exits of all ranks, the first first.
        faults: what ranks wrote of their ends, the first first.
        run_dir: of the run, for the places of the logs.
        nodes: of the run; with several the culprit's is named.
        local_ranks: ranks of each node.
    """
    cause = _cause(ended, faults, run_dir)
    if cause is None or cause.rank is None or nodes.count == 1 or cause.kind is not RankFault:
        return cause
    name = f"rank {cause.rank}"
    return replace(cause, told=cause.told.replace(name, f"{name} on {nodes.named(cause.rank // local_ranks)}", 1))


def _cause(ended: Ended, faults: Sequence[Fault], run_dir: Path) -> Cause | None:
    if ended.killed_by_user:
        return Cause(Interrupted, "stopped now by Ctrl-C; what came after the last checkpoint is lost")
    if not ended.exits:
        graceful = [fault for fault in faults if fault.exit_code in _GRACEFUL]
        return Cause(_ERRORS[graceful[0].exit_code], graceful[0].message) if graceful else None
    told = {fault.rank: fault for fault in faults}
    rank = min(ended.exits, key=lambda r: (_order(ended.exits[r], told.get(r)), list(ended.exits).index(r)))
    causes = [fault for fault in faults if _order(fault.exit_code, fault) < _order(ended.exits[rank], told.get(rank))]
    if causes:
        return _from_fault(min(causes, key=lambda f: _order(f.exit_code, f)), ended.generation, run_dir)
    if rank in told and ended.exits[rank] > 0:
        first = next(f for f in faults if _order(f.exit_code, f) == _order(ended.exits[rank], told[rank]))
        return _from_fault(first, ended.generation, run_dir)
    return _from_exit(rank, ended, run_dir)


def _order(code: int, fault: Fault | None) -> int:
    """Where an end stands in the search for the cause, the likeliest cause first."""
    if code < 0:
        return 4 if code in _OF_PEERS else 0
    if (fault.exit_code if fault is not None else code) in _OF_USERS:
        return 1
    return 3 if fault is not None and speaks_of_peer(f"{fault.kind} {fault.message}") else 2


def _from_fault(fault: Fault, generation: int, run_dir: Path) -> Cause:
    kind = _ERRORS.get(fault.exit_code, RankFault)
    if kind is not RankFault:
        return Cause(kind, fault.message, fault.rank)
    return Cause(kind, f"rank {fault.rank}: {fault.message}{_log(fault.rank, generation, run_dir)}", fault.rank)


def _from_exit(rank: int, ended: Ended, run_dir: Path) -> Cause:
    code, log = ended.exits[rank], _log(rank, ended.generation, run_dir)
    if code == -signal.SIGTERM and signal.SIGTERM in ended.forwarded:
        return Cause(Preempted, "SIGTERM came before the ranks could save")
    if code in _OF_USERS:
        told = f"rank {rank} ended with exit code {code} ({_OF_USERS[code]}) and could not write why"
        return Cause(_ERRORS[code], f"{told}{log}", rank)
    if code < 0:
        hint = _HINTS.get(signal.Signals(-code))
        cause = f"was killed by {signal.Signals(-code).name}" + (f" ({hint})" if hint else "")
    else:
        cause = f"ended with exit code {code} and left no word"
    return Cause(RankFault, f"rank {rank} {cause}{log}", rank)


def _log(rank: int, generation: int, run_dir: Path) -> str:
    """Where the rank's output is; rank 0's went to the terminal."""
    return f"; its log: {logs_folder(run_dir, generation) / f'rank-{rank}.log'}" if rank else ""
