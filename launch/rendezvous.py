"""torch's elastic agent, as the launcher uses it: how nodes find each other, how ranks are started and watched.

One node: a store on a free port of 127.0.0.1, chosen by the kernel. Several: a store on node 0 at the endpoint that was given,
each node with its own number. The store has no authentication by torch's design and listens on every address: the endpoint
belongs on a private network. Only `launch.ranks` imports this module, once ranks are to start: it imports torch.
"""

import contextlib
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from launch.ranks import WATCH_INTERVAL_S, Nodes, Watch

LOOPBACK = "127.0.0.1"
JOIN_TIMEOUT_S = 600
"""How long a node waits for the others at the start."""
EXIT_BARRIER_S = 60.0
"""How long a node whose ranks have ended waits for the others."""
FAREWELL_S = 5.0
"""How long node 0 then waits until they have left the store."""


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


class _StaticRendezvous(StaticTCPRendezvous):
    """Nodes with fixed numbers, which exchange a word through the store before ranks start."""

    agree: Callable[[Any], None]

    def next_rendezvous(self) -> RendezvousInfo:
        info = super().next_rendezvous()
        self.agree(info.store)
        return info


class _WatchedAgent(LocalElasticAgent):
    """torch's agent, which lets the launcher's watch look at the ranks before it reaps them itself.

    The two methods are SimpleElasticAgent's documented seam for agents of one's own; their decorator has no type.
    """

    watch: Watch
    arguments: Callable[[], tuple[str, ...]]

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        worker_group.spec.args = self.arguments()
        return super()._start_workers(worker_group)  # pyright: ignore[reportCallIssue]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.watch.look({worker.global_rank: worker.id for worker in worker_group.workers}):
            return super()._monitor_workers(worker_group)  # pyright: ignore[reportCallIssue]
        return RunResult(state=WorkerState.HEALTHY)

    def _exit_barrier(self) -> None:
        """Node 0 holds the store, and outlasts the others: who still waits for torch's barrier would meet a closed socket."""
        super()._exit_barrier()
        group, store = self._worker_group, self._store
        if store is None:
            return
        keys = [f"pretrain/left/{node}" for node in range(1, group.group_world_size or 1)]
        if group.group_rank:
            store.set(keys[group.group_rank - 1], "1")  # no answer is waited for
        elif keys:
            with contextlib.suppress(DistStoreError):  # a node that died says nothing
                store.wait(keys, timedelta(seconds=FAREWELL_S))


def make_agent(
    nodes: Nodes,
    local_ranks: int,
    watch: Watch,
    arguments: Callable[[], tuple[str, ...]],
    agree: Callable[[Any], None],
) -> LocalElasticAgent:
    """The agent of this node.

    Args:
        nodes: of the run.
        local_ranks: that this node starts.
        watch: looks at the ranks at every interval.
        arguments: of /bin/sh, which becomes the rank; asked for when the nodes have met.
        agree: called with the store when they meet, where there are several.
    """
    spec = WorkerSpec(
        role="rank",
        local_world_size=local_ranks,
        entrypoint="/bin/sh",
        rdzv_handler=_handler(nodes, agree),
        max_restarts=0,
        monitor_interval=WATCH_INTERVAL_S,
        local_addr=LOOPBACK if nodes.count == 1 else None,
    )
    agent = _WatchedAgent(spec, RankLogs(), exit_barrier_timeout=EXIT_BARRIER_S)
    agent.watch, agent.arguments = watch, arguments
    return agent


def _handler(nodes: Nodes, agree: Callable[[Any], None]) -> RendezvousHandler:
    if nodes.count == 1:
        run_id = str(uuid.uuid4())
        parameters = RendezvousParameters("c10d", f"{LOOPBACK}:0", run_id, 1, 1, local_addr=LOOPBACK, is_host=True)
        return get_rendezvous_handler(parameters)
    assert nodes.endpoint is not None, "several nodes need an endpoint; the command checks it"
    host, port = parse_rendezvous_endpoint(nodes.endpoint, -1)
    # Every node must name the run alike, and has nothing to name it by but the endpoint.
    handler = _StaticRendezvous(host, port, nodes.rank, nodes.count, f"pretrain-{port}", JOIN_TIMEOUT_S)
    handler.agree = agree
    return handler
