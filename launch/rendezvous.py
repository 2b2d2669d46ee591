"""How the launchers of a run's nodes find each other, and where torch's agent sends what ranks print.

One node: a store on a free port of 127.0.0.1, chosen by the kernel. Several: a store on node 0 at the endpoint that was given,
each node with its own number. The store has no authentication by torch's design and listens on every address: the endpoint
belongs on a private network. This module imports torch; only `launch.ranks` imports it, once ranks are to start.
"""

from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous
from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint

from launch.ranks import Nodes

JOIN_TIMEOUT_S = 600
"""How long a node waits for the others."""


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


def rendezvous_handler(nodes: Nodes, run_id: str, agree: Callable[[Any], None]) -> RendezvousHandler:
    """The handler for a run's nodes; `agree` is called with the store where there are several."""
    if nodes.count == 1:
        return get_rendezvous_handler(
            RendezvousParameters("c10d", "127.0.0.1:0", run_id, 1, 1, local_addr="127.0.0.1", is_host=True)
        )
    assert nodes.endpoint is not None, "several nodes need an endpoint; the launcher checks it"
    host, port = parse_rendezvous_endpoint(nodes.endpoint, -1)
    # Every node must name the run alike, and has nothing to name it by but the endpoint.
    handler = _StaticRendezvous(host, port, nodes.rank, nodes.count, f"pretrain-{port}", JOIN_TIMEOUT_S)
    handler.agree = agree
    return handler
