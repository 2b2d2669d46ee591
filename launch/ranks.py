"""Starts the ranks of this node under torch's elastic agent, forwards signals to them, and tells how each ended.

The agent (`torch.distributed.elastic`) does the rendezvous, the ranks' environment and the process table. It runs on a thread:
on the main thread it would install signal handlers that stop the ranks at the first signal, where a rank should finish its step
and save. The main thread is the one that Python runs signal handlers on; it forwards them, and watches for the first rank to
die, which the agent's own record (all exit codes after everything was stopped) no longer shows.

Restarts are not the agent's: they would come without a new generation and without a word to the user.
Alternatives not taken: torchrun as a process (it returns 1 for every fault); a process table of our own (rendezvous over nodes
is the agent's real work). Cost: the launcher imports torch, about 2 s and 250 MB.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.guard.fault_file import logs_folder
from pretrain.guard.parent import DEFERRED_SIGNALS, LAUNCHER_PID

WATCH_INTERVAL_S = 0.1

PEERS_GRACE_S = 3.0
"""From a rank's death to SIGKILL for its peers. They have nothing left to do but to write their own ends, or wait in a collective
that will not return."""

# Ranks other than 0 write to their own log. `exec` keeps the process id: signals and exit codes are the rank's own.
_REDIRECT = 'if [ "$RANK" != 0 ]; then exec >>"$0/rank-$RANK.log" 2>&1 </dev/null; fi; exec "$@"'


@dataclass(frozen=True)
class Nodes:
    """The machines of a run."""

    count: int = 1
    rank: int = 0
    """Of this one."""
    endpoint: str | None = None
    """HOST:PORT of the store on node 0; needed with more than one node."""


@dataclass(frozen=True)
class RankJob:
    """What the ranks of this node run."""

    command: tuple[str, ...]
    """Program and arguments; `--run RUN --generation G` is appended."""
    run_dir: Path
    generation: int
    """Of this launch; on other nodes than the first, node 0's is taken."""
    local_ranks: int
    nodes: Nodes = field(default_factory=Nodes)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Ended:
    """How the ranks of this node ended."""

    generation: int
    exits: dict[int, int] = field(default_factory=dict)
    """Ranks that failed, the first first: exit code, or the negative number of a signal."""
    forwarded: list[signal.Signals] = field(default_factory=list)
    """Signals that the launcher got and passed on."""
    killed_by_user: bool = False
    """Ctrl-C came twice."""


def run_ranks(job: RankJob) -> Ended:
    """Starts the ranks and returns when all of them have ended. Must be called on the main thread."""
    # torch warns through the agent's loggers of what is meant here: a thread, and signals to the ranks.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    ended = Ended(job.generation)
    agent = _AgentThread(job, ended)
    with _caught_signals() as caught:
        agent.start()
        while agent.is_alive():
            agent.join(WATCH_INTERVAL_S)
            while caught and agent.watch.pids:
                _pass_on(caught.pop(0), agent.watch, ended)
    if ended.exits:
        agent.watch.kill()
    if agent.error is not None and not ended.exits:
        raise agent.error
    return ended


class _AgentThread(threading.Thread):
    """torch's agent on a thread of its own."""

    def __init__(self, job: RankJob, ended: Ended):
        super().__init__(name="elastic-agent", daemon=True)
        self.job, self.ended = job, ended
        self.watch = Watch(ended)
        self.error: Exception | None = None

    def run(self) -> None:
        """Runs the ranks to their end."""
        # Inherited by the ranks: a signal that comes while they import torch waits until their handlers stand.
        signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED_SIGNALS)
        from launch.rendezvous import make_agent

        try:
            agent = make_agent(self.job.nodes, self.job.local_ranks, self.watch, self._arguments, self._agree)
            result: Any = agent.run()
            for rank, failure in result.failures.items():
                if rank not in self.watch.stopped:
                    self.ended.exits.setdefault(rank, failure.exitcode)
        except Exception as error:
            self.error = error

    def _agree(self, store: Any) -> None:
        """Node 0 numbers the launch; the others learn it from the store before they start a rank."""
        key = "pretrain/generation"
        if self.job.nodes.rank == 0:
            store.set(key, str(self.ended.generation))
        self.ended.generation = int(store.get(key))

    def _arguments(self) -> tuple[str, ...]:
        """Of /bin/sh, once the generation is known."""
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

    def look(self, pids: Mapping[int, int]) -> bool:
        """Notes ranks that failed since the last look, and whether the agent may now reap them: False while peers of a
        dead rank have time to end by themselves. It must look before the agent does, which forgets who was first."""
        self.pids = dict(pids)
        states = {rank: _exit_of(pid) for rank, pid in self.pids.items()}
        known = self.stopped | self._ended.exits.keys()
        self._ended.exits.update({rank: code for rank, code in states.items() if code and rank not in known})
        if not self._ended.exits or all(code is not None for code in states.values()):
            return True
        self._first_death = self._first_death or time.monotonic()
        if time.monotonic() - self._first_death < PEERS_GRACE_S:
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


@contextmanager
def _caught_signals() -> Iterator[list[signal.Signals]]:
    """Within it, signals that ask the run to end are collected. One that was ignored at the start (nohup) stays ignored."""
    caught: list[signal.Signals] = []
    before = {}
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            before[signum] = signal.signal(signum, lambda number, _: caught.append(signal.Signals(number)))
    try:
        yield caught
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
