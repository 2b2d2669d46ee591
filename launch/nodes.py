"""The machines of a run, and where they meet: HOST:PORT, which node 0 alone listens at.

No torch here: a mistake in `--rendezvous` is told at once. Node 0 binds the one address that HOST has on it, so that nothing
listens on any other; the socket is handed to the store (`launch.rendezvous`).
"""

import errno
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from pretrain.errors import ConfigError, RankFault

LOOPBACK = "127.0.0.1"
JOIN_TIMEOUT_S = 600.0
"""How long nodes wait for each other at the start."""
LOST_S = 10.0
"""A node that was not heard of for so long is lost. A launcher tells of itself several times a second, whatever its ranks do."""

TELL_AFTER_S = 5.0
"""How long a launcher waits for others without a word."""

_BACKLOG = 4096
_CONNECT_S = 1.0
_RETRY_S = 0.2


@dataclass(frozen=True)
class Nodes:
    """The machines of a run."""

    count: int = 1
    rank: int | None = 0
    """Of this one; None: the machine that the endpoint's HOST names is 0, others are numbered as they arrive."""
    endpoint: str | None = None
    """HOST:PORT of the store on node 0; needed with more than one node."""
    hosts: tuple[str, ...] = ()
    """Names of all, by number, once they have met."""
    join_timeout_s: float = JOIN_TIMEOUT_S
    lost_s: float = LOST_S

    def named(self, node: int) -> str:
        """A node as a user knows it."""
        return self.hosts[node] if node < len(self.hosts) and self.hosts[node] else f"node {node}"


def parse_endpoint(text: str) -> tuple[str, int]:
    """HOST and PORT of an endpoint; an IPv6 address stands in brackets. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--rendezvous {text}: it must be HOST:PORT of node 0, the same on all nodes")
    return host, int(port)


def bind(endpoint: str, rank: int | None) -> socket.socket | None:
    """The listening socket of node 0 at the endpoint's address; None on a machine that is not node 0.

    Raises ConfigError where HOST is not known, or is not this machine though `rank` is 0; RankFault where the port is taken.
    """
    if rank:
        return None
    taken = False
    for family, address in _addresses(endpoint):
        _check_reachable(endpoint, address[0])
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            taken = taken or error.errno == errno.EADDRINUSE
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EADDRINUSE):
                raise ConfigError(
                    f"--rendezvous {endpoint}: cannot listen there: {os.strerror(error.errno or 0)}"
                ) from None
            continue
        return listener
    if rank is None:
        return None
    if taken:
        raise RankFault(
            f"--rendezvous {endpoint}: another program listens there; choose another port, the same on all nodes"
        )
    raise ConfigError(
        f"--rendezvous {endpoint}: HOST is no address of this machine ({socket.gethostname()}), though --node-rank is 0; "
        "name node 0 there, or leave --node-rank out"
    )


def reach(endpoint: str, timeout_s: float, still: Callable[[], None] = lambda: None) -> str:
    """The numeric address at which the endpoint answers; waits until it does.

    Args:
        endpoint: of node 0.
        timeout_s: for how long.
        still: called between attempts; what it raises ends the waiting.

    Raises ConfigError where HOST is not known, RankFault where nobody listens.
    """
    end = time.monotonic() + timeout_s
    while True:
        for family, address in _addresses(endpoint):
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.settimeout(_CONNECT_S)
                try:
                    probe.connect(address)
                except OSError:
                    continue
                return address[0]
        if time.monotonic() > end:
            raise RankFault(
                f"--rendezvous {endpoint}: nobody listened there for {timeout_s:.0f} s; is the launcher of node 0 started, "
                "and may this machine reach that port?"
            )
        still()
        time.sleep(_RETRY_S)


def told_once(line: str) -> Callable[[], None]:
    """Called again and again while something is waited for: writes the line to stderr once it takes `TELL_AFTER_S`."""
    begin, told = time.monotonic(), False

    def still() -> None:
        nonlocal told
        if not told and time.monotonic() - begin > TELL_AFTER_S:
            told = True
            print(line, file=sys.stderr, flush=True)

    return still


def _addresses(endpoint: str) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    host, port = parse_endpoint(endpoint)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        kind = RankFault if error.errno == socket.EAI_AGAIN else ConfigError
        raise kind(
            f"--rendezvous {endpoint}: {host} cannot be resolved here ({error.strerror}); give an address"
        ) from None
    return [(family, (str(address[0]), port)) for family, _, _, _, address in found]


def _check_reachable(endpoint: str, address: str) -> None:
    """Raises ConfigError for a name that means this machine to itself alone (127.0.1.1 for the own name in /etc/hosts), and for
    one that means all addresses."""
    host, _ = parse_endpoint(endpoint)
    found = ipaddress.ip_address(address.split("%")[0])
    if found.is_unspecified:
        raise ConfigError(
            f"--rendezvous {endpoint}: {host} means all addresses of every machine; give the one address of node 0 at which the "
            "others reach it, for the store that listens there has no password"
        )
    if host != "localhost" and host != address and found.is_loopback:
        raise ConfigError(
            f"--rendezvous {endpoint}: {host} is {address} here, where no other machine reaches it; give the address of the "
            "network between the nodes"
        )
