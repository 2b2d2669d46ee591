"""Worlds of ranks that stay up between jobs, for parity and for tests: `run_ranks(world_size, function, *args)` and `World`.

A rank is a real process with a real process group on this machine. Ranks are forked from a server that has imported torch, and
on CPUs DeepSpeed, once (multiprocessing's forkserver: it holds no thread and no lock of its parent), so that a world starts in
half a second instead of an interpreter and these imports per rank; a `World` keeps its ranks, so that many layouts run in it one
after another. Functions and arguments travel pickled; a function is named by its module, so it must stand at the top of one.

A fault cannot hang or litter: an exception in a rank is raised in the parent with that rank's traceback; ranks that do not
answer in time are asked for their stacks (faulthandler) and killed by process id; a rank that finds its parent dead ends
itself. After a fault the world starts afresh at the next call.

Not taken: torch.multiprocessing.spawn (5 s of imports per call, first exception only), torchrun (a rendezvous and a command
line per call), threads with a fake backend (DeepSpeed keeps state in module globals).
"""

import contextlib
import faulthandler
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

Result = TypeVar("Result")
DeviceKind = Literal["cpu", "cuda"]

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch", "torch.distributed", "torch._inductor.compile_fx"]
_GRACE_S = 1.5
"""How long the other ranks may still report after the first fault; most of them hang in a collective by then."""


class RanksFailed(Exception):
    """One or more ranks raised, died or did not answer in time; the message holds every rank's story."""


@dataclass(frozen=True)
class _Rank:
    process: BaseProcess
    connection: Connection
    log: IO[bytes]


class World:
    """`world_size` ranks that stay. Use as a context manager, or as a fixture of module or session scope."""

    def __init__(self, world_size: int, *, timeout_s: float = 120.0, device: DeviceKind = "cpu") -> None:
        """`device` cpu: gloo, one thread a rank. cuda: NCCL, a GPU a rank."""
        self.world_size = world_size
        self.timeout_s = timeout_s
        self.device: DeviceKind = device
        self._ranks: list[_Rank] = []
        self._store: TCPStore | None = None

    def run(self, function: Callable[..., Result], *arguments: object, timeout_s: float | None = None) -> list[Result]:
        """`function(*arguments)` in every rank at once; their results in the order of ranks.

        In a rank torch.distributed is initialised, one thread computes on a CPU, and RANK, WORLD_SIZE, LOCAL_RANK,
        LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set as torchrun sets them. Results are pickled: tensors come back
        as copies.

        Raises:
            RanksFailed: a rank raised, died, or took longer than `timeout_s`; the world's ranks are gone then.
        """
        if not self._ranks:
            self._start()
        job = pickle.dumps((function, arguments))
        try:
            for rank in self._ranks:
                rank.connection.send_bytes(job)
            answers = self._collect(time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s))
        except BaseException:
            self._kill()
            raise
        return [answers[index] for index in range(self.world_size)]

    def close(self) -> None:
        """Ends the ranks: asks, then kills by process id. A closed world starts afresh when it is used again."""
        for rank in self._ranks:
            with contextlib.suppress(OSError):
                rank.connection.close()
        deadline = time.monotonic() + 1.0
        for rank in self._ranks:
            rank.process.join(max(0.0, deadline - time.monotonic()))
        self._kill()

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.process.kill()
        for rank in self._ranks:
            rank.process.join()
            rank.process.close()
            rank.connection.close()
            rank.log.close()
        self._ranks = []
        self._store = None

    def __enter__(self) -> "World":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_ids(self) -> list[int]:
        """Of the ranks that are there now."""
        return [rank.process.pid for rank in self._ranks if rank.process.pid is not None]

    def _start(self) -> None:
        _start_server(self.device)
        # Port 0: the system picks a free one, and it is bound from here on, so nobody else can take it.
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        for index in range(self.world_size):
            ours, theirs = _CONTEXT.Pipe()
            log = tempfile.NamedTemporaryFile(prefix=f"rank{index}-", suffix=".log")  # noqa: SIM115 (closed in close)
            process = _CONTEXT.Process(
                target=_serve,
                args=(index, self.world_size, self._store.port, self.timeout_s, log.name, theirs, self.device),
                name=f"rank {index}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._ranks.append(_Rank(process, ours, log))

    def _collect(self, deadline: float) -> dict[int, Any]:
        answers: dict[int, Any] = {}
        faults: dict[int, str] = {}
        while len(answers) + len(faults) < self.world_size:
            waiting = {
                rank.connection: index
                for index, rank in enumerate(self._ranks)
                if index not in answers and index not in faults
            }
            ready = multiprocessing.connection.wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                index = waiting[connection]
                try:
                    succeeded, answer = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    self._ranks[index].process.join(_GRACE_S)
                    succeeded, answer = False, f"died with exit code {self._ranks[index].process.exitcode}"
                (answers if succeeded else faults)[index] = answer
            if faults:
                deadline = min(deadline, time.monotonic() + _GRACE_S)
        if len(answers) < self.world_size:
            raise RanksFailed(self._story(answers, faults))
        return answers

    def _story(self, answers: dict[int, Any], faults: dict[int, str]) -> str:
        for index, rank in enumerate(self._ranks):
            if index not in answers and index not in faults:
                _ask_for_stacks(rank)
        lines = []
        for index, rank in enumerate(self._ranks):
            if index in answers:
                lines.append(f"rank {index} returned")
                continue
            lines.append(f"rank {index} {faults.get(index, 'did not answer in time')}".rstrip())
            log = Path(rank.log.name).read_text(errors="replace")[-12000:].strip()
            if log:
                lines.append(f"  last output of rank {index}:\n{log}")
        return "\n".join(lines)


def _start_server(device: DeviceKind) -> None:
    """Starts the server that ranks are forked from, if it is not there, deaf to Ctrl-C: its parent ends it, and the ranks."""
    _CONTEXT.set_forkserver_preload(_PRELOADED + (["pretrain.engine.preload"] if device == "cpu" else []))
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def _ask_for_stacks(rank: _Rank) -> None:
    """Has faulthandler write the stacks of a rank into its log, and gives it a while to do so."""
    if rank.process.pid is None or not rank.process.is_alive():
        return
    size = os.fstat(rank.log.fileno()).st_size
    os.kill(rank.process.pid, signal.SIGUSR1)
    deadline = time.monotonic() + 5.0
    while os.fstat(rank.log.fileno()).st_size == size and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # the rest of the stacks


def run_ranks(world_size: int, function: Callable[..., Result], *arguments: object) -> list[Result]:
    """`function(*arguments)` in every rank of a fresh world, ended before this returns; see `World.run`."""
    with World(world_size) as world:
        return world.run(function, *arguments)


def _serve(
    rank: int, world_size: int, port: int, timeout_s: float, log: str, connection: Connection, device: DeviceKind
) -> None:
    """A rank: joins the process group, then runs jobs until the parent closes the connection."""
    _prepare_rank(rank, world_size, port, log, device)
    store = TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
    backend = "gloo" if device == "cpu" else "nccl"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s)
    )
    pool = _GroupPool.install()
    while True:
        try:
            job = connection.recv_bytes()
        except (EOFError, OSError):
            # No destructor of DeepSpeed or gloo is worth waiting for, and some wait for peers that are gone.
            os._exit(0)
        pool.start_job()
        try:
            function, arguments = pickle.loads(job)
            answer = pickle.dumps((True, function(*arguments)))
        except BaseException:
            answer = pickle.dumps((False, f"raised\n{traceback.format_exc()}"))
        connection.send_bytes(answer)


class _GroupPool:
    """Process groups that one job after another uses again, in place of torch's `new_group`.

    An engine makes some twenty groups and ends none, and each gloo group has threads that wake a hundred times a second: after
    a hundred layouts they took most of two cores. Within a job the n-th group of the same ranks stays apart from the others.
    """

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self._groups: dict[tuple[object, ...], Any] = {}
        self._lent: Counter[tuple[object, ...]] = Counter()

    @staticmethod
    def install() -> "_GroupPool":
        """Takes the place of `torch.distributed.new_group` in this process."""
        pool = _GroupPool(dist.new_group)
        setattr(dist, "new_group", pool.new_group)  # noqa: B010 (types know a function there)
        return pool

    def start_job(self) -> None:
        """All groups may be lent again."""
        self._lent.clear()

    def new_group(self, ranks: Sequence[int] | None = None, *arguments: Any, **more: Any) -> Any:
        """As torch's; every rank of a world must call it in the same order, as torch asks too."""
        kind = (None if ranks is None else tuple(ranks), arguments, tuple(sorted(more.items())))
        key = (*kind, self._lent[kind])
        self._lent[kind] += 1
        if key not in self._groups:
            self._groups[key] = self._make(ranks, *arguments, **more)
        return self._groups[key]


def _prepare_rank(rank: int, world_size: int, port: int, log: str, device: DeviceKind) -> None:
    try:
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
    except FileNotFoundError:  # the parent was stopped while this rank was starting
        os._exit(1)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable(file=sys.stderr)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR=device,
    )
    if device == "cuda":
        assert "deepspeed" not in sys.modules, "this process has had ranks on CPUs: their DeepSpeed is not one for GPUs"
        torch.cuda.set_device(rank)
    if sys.platform == "linux":
        # Without it gloo looks up the host's own name, which hosts without DNS cannot answer.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
