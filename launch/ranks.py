"""Starts the ranks of this node under torch's elastic agent, forwards signals to them, and tells how each ended.

The agent (`torch.distributed.elastic`) makes the ranks' environment and keeps the process table. It runs on a thread:
on the main thread it would install signal handlers that stop the ranks at the first signal, where a rank should finish its step
and save. The main thread is the one that Python runs signal handlers on; it forwards them, listens to the other nodes, and
watches for the first rank to die, which the agent's own record (all exit codes after everything was stopped) no longer shows.

Restarts are not the agent's (`launch.attempts`): they would come without a new generation and without a word to the user.
Alternatives not taken: torchrun as a process (it returns 1 for every fault). Cost: the launcher imports torch, about 2 s and
250 MB.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.quiet import quiet_torch
from launch.signals import EndingSignals
from pretrain.errors import PretrainError
from pretrain.guard.fault_file import logs_folder
from pretrain.guard.parent import DEFERRED_SIGNALS, LAUNCHER_PID

if TYPE_CHECKING:
    from launch.crew import Crew

WATCH_INTERVAL_S = 0.1

PEERS_GRACE_S = 3.0
"""From a rank's death to SIGKILL for its peers. They have nothing left to do but to write their own ends, or wait in a collective
that will not return."""
CLEAR_GRACE_S = 1.0
"""The same where the cause is clear, a signal from outside: nothing that peers write can change it."""

# Ranks other than 0 write to their own log. `exec` keeps the process id: signals and exit codes are the rank's own.
_REDIRECT = 'if [ "$RANK" != 0 ]; then exec >>"$0/rank-$RANK.log" 2>&1 </dev/null; fi; exec "$@"'
_CAUSED_BY_PEERS = (-signal.SIGTERM, -signal.SIGABRT)


@dataclass(frozen=True)
class RankJob:
    """What the ranks of this node run."""

    command: tuple[str, ...]
    """Program and arguments; `--run RUN --generation G` is appended."""
    run_dir: Path
    generation: int
    """Of this attempt."""
    local_ranks: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """How ranks ended."""

    generation: int
    exits: dict[int, int] = field(default_factory=dict)
    """Ranks that failed, the first first: exit code, or the negative number of a signal."""
    forwarded: list[signal.Signals] = field(default_factory=list)
    """Signals that the launcher got and passed on."""
    killed_by_user: bool = False
    """Ctrl-C came twice."""
    noticed: float | None = None
    """When the first of them was seen, in seconds since the epoch."""


def run_ranks(job: RankJob, crew: "Crew", signals: EndingSignals) -> Ended:
    """Starts the ranks of this node and returns when all of them have ended. Must be called on the main thread.

    Raises what ended the launch on another node (`Crew.check`), and the error of a signal that came before a rank was started.
    """
    # torch warns through the agent's loggers of what is meant here: a thread, and signals to the ranks.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    ended = Ended(job.generation)
    agent = _AgentThread(job, ended, crew)
    from_outside: PretrainError | None = None
    with signals.held():
        agent.start()
        while agent.is_alive():
            agent.join(WATCH_INTERVAL_S)
            while signals.caught and not agent.cancel() and agent.watch.pids:
                _pass_on(signals.caught.pop(0), agent.watch, ended)
            try:
                _follow(crew, agent.watch, ended)
            except PretrainError as error:
                from_outside = from_outside or error
                agent.cancel()
                agent.watch.kill()
    if ended.exits:
        agent.watch.kill()
    if from_outside is not None:
        raise from_outside
    if ended.exits:
        ended.forwarded += signals.caught  # who asked the run to end does not want it started again
        return ended
    signals.check()
    if agent.error is not None:
        raise agent.error
    return ended


def _follow(crew: "Crew", watch: "Watch", ended: Ended) -> None:
    """Tells the other nodes that a rank died here, and hears that one died there. Raises what ends the launch."""
    crew.check()
    grace = grace_s(ended.exits.values()) if ended.exits else None
    for row in crew.rows().values():
        generation, told = row.get("dying", (0, 0.0))
        if generation == ended.generation:
            watch.peers_die(told)
            grace = grace if grace is not None or not crew.leads else told
    if grace is not None:
        crew.publish(dying=[ended.generation, grace])
    if ended.killed_by_user:
        crew.publish(dying=[ended.generation, 0.0])


class _Cancelled(Exception):
    """The launch ended before ranks were started."""


class _AgentThread(threading.Thread):
    """torch's agent on a thread of its own."""

    def __init__(self, job: RankJob, ended: Ended, crew: "Crew"):
        super().__init__(name="elastic-agent", daemon=True)
        self.job, self.ended, self.crew = job, ended, crew
        self.watch = Watch(ended)
        self.error: Exception | None = None
        self._lock = threading.Lock()
        self._begun = self._cancelled = False

    def run(self) -> None:
        """Runs the ranks to their end."""
        # Inherited by the ranks: a signal that comes while they import torch waits until their handlers stand.
        signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED_SIGNALS)
        with quiet_torch():
            from launch.rendezvous import make_agent

        try:
            agent = make_agent(self.crew.nodes, self.crew.open(), self.job.local_ranks, self.watch, self._arguments)
            result: Any = agent.run()
            for rank, failure in result.failures.items():
                if rank not in self.watch.stopped:
                    self.ended.exits.setdefault(rank, failure.exitcode)
        except _Cancelled:
            pass
        except Exception as error:
            self.error = error

    def cancel(self) -> bool:
        """Whether no rank was started yet; none is then."""
        with self._lock:
            self._cancelled = self._cancelled or not self._begun
            return self._cancelled

    def _arguments(self) -> tuple[str, ...]:
        """Of /bin/sh, right before ranks are started."""
        with self._lock:
            if self._cancelled:
                raise _Cancelled
            self._begun = True
        folder = logs_folder(self.job.run_dir, self.ended.generation)
        folder.mkdir(parents=True, exist_ok=True)
        variables = {LAUNCHER_PID: str(os.getpid()), **self.job.environment}
        run = ("--run", str(self.job.run_dir), "--generation", str(self.ended.generation))
        return (
            "-c",
            _REDIRECT,
            str(folder),
            "env",
            *(f"{k}={v}" for k, v in variables.items()),
            *self.job.command,
            *run,
        )


class Watch:
    """Sees which rank died first, and stops its peers once they had time to tell their own end."""

    def __init__(self, ended: Ended):
        self.pids: dict[int, int] = {}
        """Processes of the ranks that were started, by global rank."""
        self.stopped: set[int] = set()
        """Ranks that were alive when they were killed from here: their end is no cause of anything."""
        self._ended = ended
        self._first_death: float | None = None
        self._grace_s: float | None = None

    def peers_die(self, grace_s: float) -> None:
        """A rank died on another node: those that are here have so long to end."""
        self._first_death = self._first_death or time.monotonic()
        self._grace_s = grace_s

    def look(self, pids: Mapping[int, int]) -> bool:
        """Notes ranks that failed since the last look, and whether the agent may now reap them: False while peers of a
        dead rank have time to end by themselves. It must look before the agent does, which forgets who was first."""
        self.pids = dict(pids)
        states = {rank: _exit_of(pid) for rank, pid in self.pids.items()}
        known = self.stopped | self._ended.exits.keys()
        self._ended.exits.update({rank: code for rank, code in states.items() if code and rank not in known})
        if self._ended.exits:
            self._ended.noticed = self._ended.noticed or round(time.time(), 3)
        if all(code is not None for code in states.values()):
            return True
        if not self._ended.exits and self._first_death is None:
            return True
        self._first_death = self._first_death or time.monotonic()
        grace = self._grace_s if self._grace_s is not None else grace_s(self._ended.exits.values())
        if time.monotonic() - self._first_death < grace:
            return False
        self.kill()
        return True

    def kill(self) -> None:
        """SIGKILL to every rank and to whatever it started."""
        self.stopped |= self.pids.keys() - self._ended.exits.keys()
        self.send(signal.SIGKILL)

    def send(self, signum: int) -> None:
        """A signal to every rank; SIGKILL reaches the processes that ranks started, too."""
        for pid in self.pids.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signum) if signum == signal.SIGKILL else os.kill(pid, signum)


def grace_s(exits: Iterable[int]) -> float:
    """How long the peers of ranks that ended so have to end."""
    return CLEAR_GRACE_S if any(code < 0 and code not in _CAUSED_BY_PEERS for code in exits) else PEERS_GRACE_S


def _exit_of(pid: int) -> int | None:
    """Exit code of a child that ended, negative for a signal; None while it runs. One that was reaped is told as 0: the agent
    has its code."""
    try:
        state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return 0
    if state is None:
        return None
    return state.si_status if state.si_code == os.CLD_EXITED else -state.si_status


def _pass_on(signum: signal.Signals, watch: Watch, ended: Ended) -> None:
    """Ctrl-C once, TERM, USR1 and a closed terminal let the ranks finish their step; Ctrl-C again stops them now."""
    if signum == signal.SIGINT and signal.SIGINT in ended.forwarded:
        ended.killed_by_user = True
        watch.kill()
        return
    ended.forwarded.append(signum)
    with suppress(OSError):
        if signum == signal.SIGINT:
            print("\nCtrl-C: finishing the step and saving; press it again to stop now", file=sys.stderr, flush=True)
        else:
            print(f"\n{signum.name}: finishing the step and saving", file=sys.stderr, flush=True)
    watch.send(signal.SIGTERM if signum == signal.SIGHUP else signum)
