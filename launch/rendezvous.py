"""torch's store and elastic agent, as the launcher uses them: where nodes meet, how ranks are started and watched.

There is one store in a launcher's life, on node 0: torch's TCPStore over a socket that the launcher bound itself, so that it
listens on one address alone: 127.0.0.1 and a port of the kernel's choice on one node, the endpoint's address with several. It has
no authentication by torch's design: the endpoint belongs on a private network. Ranks use it too, each attempt under a
prefix of its own (`pretrain.engine.world`): what a dead attempt left in the store would lead ranks to sockets that are closed.

An attempt has an agent of its own, without restarts: they would come without a new generation and a word to the user. Nodes are
numbered and agree before it (`launch.crew`), so it never waits for others. Only `launch.ranks` and `launch.crew` import
this module, once it is needed: it imports torch.
"""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.agent.server.api import RunResult, Worker, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo
from torch.distributed.elastic.rendezvous.api import RendezvousStoreInfo

from launch.nodes import LOOPBACK, Nodes, parse_endpoint
from launch.ranks import WATCH_INTERVAL_S, Watch
from pretrain.errors import RankFault

STORE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Meeting:
    """A launcher's connection to the store."""

    store: TCPStore
    address: str
    """Numeric, of node 0."""
    port: int
    leads: bool
    """Whether the store is this launcher's own."""


def alone() -> Meeting:
    """The store of a run on one node."""
    listener = socket.socket()
    listener.bind((LOOPBACK, 0))
    listener.listen()
    return _serve(listener)


def meet(endpoint: str, listener: socket.socket | None, address: str | None, timeout_s: float) -> Meeting:
    """The store of a run on several nodes: node 0 gives its listener, the others the address at which they reach it.

    Raises RankFault where something else listens there.
    """
    if listener is not None:
        return _serve(listener)
    assert address is not None
    _, port = parse_endpoint(endpoint)
    try:
        store = TCPStore(address, port, None, False, timedelta(seconds=timeout_s), wait_for_workers=False)
        store.wait(["pretrain/nodes"], timedelta(seconds=timeout_s))
    except Exception as error:
        raise RankFault(
            f"--rendezvous {endpoint}: what listens there does not answer as a launcher of this run; choose another port, the "
            f"same on all nodes ({str(error).splitlines()[0]})"
        ) from None
    return Meeting(store, address, port, leads=False)


def _serve(listener: socket.socket) -> Meeting:
    address, port = listener.getsockname()[:2]
    with listener:
        store = TCPStore(
            address,
            port,
            None,
            True,
            timedelta(seconds=STORE_TIMEOUT_S),
            wait_for_workers=False,
            master_listen_fd=os.dup(listener.fileno()),
        )
    return Meeting(store, address, port, leads=True)


class RankLogs(LogsSpecs):
    """The agent redirects nothing: rank 0 keeps the terminal, the others open their logs themselves."""

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """No file for any rank."""
        nowhere = dict.fromkeys(envs, "")
        return LogsDest(nowhere, dict(nowhere), {}, {}, dict(nowhere))

    @property
    def root_log_dir(self) -> str:
        """None is used."""
        return ""


class _SharedStore(RendezvousHandler):
    """A rendezvous that is over: nodes have their numbers, ranks take the launcher's store."""

    def __init__(self, nodes: Nodes, meeting: Meeting) -> None:
        self._nodes, self._meeting = nodes, meeting

    @property
    def use_agent_store(self) -> bool:
        return True

    def get_backend(self) -> str:
        return "pretrain"

    def next_rendezvous(self) -> RendezvousInfo:
        place = RendezvousStoreInfo(self._meeting.address, self._meeting.port)
        store = PrefixStore("pretrain/agent", self._meeting.store)
        return RendezvousInfo(store, self._nodes.rank or 0, self._nodes.count, place)

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "pretrain"

    def shutdown(self) -> bool:
        return True


class _WatchedAgent(LocalElasticAgent):
    """torch's agent, which lets the launcher's watch look at the ranks before it reaps them itself, and never asks the store.

    The methods are SimpleElasticAgent's documented seam for agents of one's own; their decorator has no type.
    """

    watch: Watch
    arguments: Callable[[], tuple[str, ...]]

    def _assign_worker_ranks(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, store: object, group_rank: int, group_world_size: int, spec: WorkerSpec
    ) -> list[Worker]:
        """Every node has as many ranks: nothing has to be asked."""
        local, size = spec.local_world_size, spec.local_world_size * group_world_size
        return [Worker(i, group_rank * local + i, group_rank * local + i, size, size) for i in range(local)]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        worker_group.spec.args = self.arguments()
        return super()._start_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.watch.look({worker.global_rank: worker.id for worker in worker_group.workers}):
            return super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]
        return RunResult(state=WorkerState.HEALTHY)

    def _exit_barrier(self) -> None:
        """Launchers wait for each other in `launch.crew`."""


def make_agent(
    nodes: Nodes, meeting: Meeting, local_ranks: int, watch: Watch, arguments: Callable[[], tuple[str, ...]]
) -> LocalElasticAgent:
    """The agent of this node for one attempt.

    Args:
        nodes: of the run, with this one's number.
        meeting: the store.
        local_ranks: that this node starts.
        watch: looks at the ranks at every interval.
        arguments: of /bin/sh, which becomes the rank; asked for right before ranks are started.
    """
    spec = WorkerSpec(
        role="rank",
        local_world_size=local_ranks,
        entrypoint="/bin/sh",
        rdzv_handler=_SharedStore(nodes, meeting),
        max_restarts=0,
        monitor_interval=WATCH_INTERVAL_S,
    )
    agent = _WatchedAgent(spec, RankLogs())
    agent.watch, agent.arguments = watch, arguments
    return agent
