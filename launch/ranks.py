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
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.guard.fault_file import logs_folder
from pretrain.guard.parent import DEFERRED_SIGNALS, LAUNCHER_PID

WATCH_INTERVAL_S = 0.05
AGENT_INTERVAL_S = 0.2
"""Longer than the watch's, so that the watch sees a dead rank before the agent reaps it."""

PEERS_GRACE_S = 4.0
"""From a rank's death to SIGKILL for its peers. They have nothing left to do but to write their own faults, and wait in a
collective that will not end."""

EXIT_BARRIER_S = 60.0

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
    agent = _ElasticAgent(job)
    ended = Ended(job.generation)
    with _caught_signals() as caught:
        agent.start()
        watch = _Watch(agent, ended)
        while agent.is_alive():
            agent.join(WATCH_INTERVAL_S)
            watch.look()
            while caught and watch.pids:
                _pass_on(caught.pop(0), watch, ended)
    ended.generation = agent.generation
    for rank, code in agent.failures.items():
        ended.exits.setdefault(rank, code)
    if ended.exits:
        watch.kill()
    if agent.error is not None and not ended.exits:
        raise agent.error
    return ended


class _ElasticAgent(threading.Thread):
    """torch's agent on a thread of its own."""

    def __init__(self, job: RankJob):
        super().__init__(name="elastic-agent", daemon=True)
        self.job = job
        self.generation = job.generation
        self.failures: dict[int, int] = {}
        self.error: Exception | None = None
        self._agent: Any = None

    def run(self) -> None:
        """Runs the ranks to their end."""
        # Inherited by the ranks: a signal that comes while they import torch waits until their handlers stand.
        signal.pthread_sigmask(signal.SIG_BLOCK, DEFERRED_SIGNALS)
        try:
            self._agent = self._build()
            result = self._agent.run()
            self.failures = {rank: failure.exitcode for rank, failure in result.failures.items()}
        except Exception as error:
            self.error = error

    def pids(self) -> dict[int, int]:
        """Process ids of the ranks that were started, by global rank."""
        workers = self._agent.get_worker_group().workers if self._agent else ()
        return {worker.global_rank: worker.id for worker in workers if worker.id is not None}

    def _build(self) -> Any:
        from torch.distributed.elastic.agent.server.api import WorkerSpec
        from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

        from launch.rendezvous import RankLogs, rendezvous_handler

        handler = rendezvous_handler(self.job.nodes, str(uuid.uuid4()), self._agree_on_generation)
        spec = WorkerSpec(
            role="rank",
            local_world_size=self.job.local_ranks,
            entrypoint="/bin/sh",
            args=self._arguments(),
            rdzv_handler=handler,
            max_restarts=0,
            monitor_interval=AGENT_INTERVAL_S,
            local_addr="127.0.0.1" if self.job.nodes.count == 1 else None,
        )
        self._spec = spec
        return LocalElasticAgent(spec, RankLogs(), exit_barrier_timeout=EXIT_BARRIER_S)

    def _agree_on_generation(self, store: Any) -> None:
        """Node 0 numbers the launch; the others learn it from the store before they start a rank."""
        key = "pretrain/generation"
        if self.job.nodes.rank == 0:
            store.set(key, str(self.generation))
        self.generation = int(store.get(key))
        self._spec.args = self._arguments()

    def _arguments(self) -> tuple[str, ...]:
        folder = logs_folder(self.job.run_dir, self.generation)
        folder.mkdir(parents=True, exist_ok=True)
        variables = {LAUNCHER_PID: str(os.getpid()), **self.job.environment}
        command = (*self.job.command, "--run", str(self.job.run_dir), "--generation", str(self.generation))
        return ("-c", _REDIRECT, str(folder), "env", *(f"{k}={v}" for k, v in variables.items()), *command)


class _Watch:
    """Sees which rank died first, and stops its peers once they had time to tell their own end."""

    def __init__(self, agent: _ElasticAgent, ended: Ended):
        self.pids: dict[int, int] = {}
        self._agent, self._ended = agent, ended
        self._first_death: float | None = None

    def look(self) -> None:
        """Notes ranks that failed since the last look."""
        self.pids = self._agent.pids() or self.pids
        fresh = {rank: code for rank, pid in self.pids.items() if (code := _exit_of(pid))}
        self._ended.exits.update({rank: code for rank, code in fresh.items() if rank not in self._ended.exits})
        if self._ended.exits and self._first_death is None:
            self._first_death = time.monotonic()
        if self._first_death is not None and time.monotonic() - self._first_death > PEERS_GRACE_S:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to every rank and to whatever it started."""
        self.send(signal.SIGKILL)

    def send(self, signum: int) -> None:
        """A signal to every rank; SIGKILL reaches the processes that ranks started, too."""
        for pid in self.pids.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signum) if signum == signal.SIGKILL else os.kill(pid, signum)


def _exit_of(pid: int) -> int | None:
    """Exit code of a dead child that the agent has not reaped yet, negative for a signal; None while it runs or is gone."""
    if not hasattr(os, "waitid"):
        return None
    try:
        state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
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


def _pass_on(signum: signal.Signals, watch: _Watch, ended: Ended) -> None:
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
