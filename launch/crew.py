"""The launchers of a run's nodes: what each tells, and what node 0 makes of it.

Every node keeps one row in the store and overwrites it; node 0 reads all rows, the others read node 0's. There are no messages
that could be lost or come twice: a row says how things stand. A thread of its own writes and reads several times a second (the
heartbeat), so that a store call that hangs, as after a pulled cable, hangs that thread alone; the main thread sees that a row has
not changed for `Nodes.lost_s`, and ends its ranks.

    row of a node    host, facts, dying, ended, stop, left
    row of node 0    host, hosts, generation, told, dying, verdict

Node 0 decides: its verdict, an exit code and a message, is what every launcher ends with. On one node there is no thread and
nobody to tell; the store is made when ranks are to start.

Alternatives not taken: c10d's elastic rendezvous (it renumbers nodes and names no missing one), an agreement without a leader
(the store has one anyway). Cost: a few hundred bytes a node and beat; node 0 of 1,000 nodes reads 2 MB/s.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Protocol, TypeVar

from launch.endings import LostNode, error_of_code
from launch.nodes import Nodes, bind, reach, told_once
from launch.quiet import quiet_torch
from pretrain.errors import ConfigError, PretrainError, RankFault

BEAT_S = 0.2
FAREWELL_S = 5.0
"""How long node 0 waits at its end until the others have read its verdict, and another for the verdict after its own fault."""
HANDSHAKE_S = 120.0
"""How long node 0 may take from listening to its store: it imports torch in between."""

_POLL_S = 0.05
_Found = TypeVar("_Found")


class Store(Protocol):
    """What is needed of torch's store."""

    def set(self, key: str, value: str, /) -> None: ...  # noqa: D102
    def get(self, key: str, /) -> bytes: ...  # noqa: D102
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...  # noqa: D102
    def add(self, key: str, amount: int, /) -> int: ...  # noqa: D102
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...  # noqa: D102


class Crew:
    """The nodes of a run as this launcher sees them.

    As a context it ends them together: what is raised within it on one node is told to all, and raised on all.
    """

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes if nodes.count > 1 else replace(nodes, hosts=(socket.gethostname(),))
        """With this node's number, once it has joined."""
        self.meeting: Any = None
        """`launch.rendezvous.Meeting`, once there is one."""
        self._rows: _Rows | None = None

    @property
    def leads(self) -> bool:
        """Whether this is node 0."""
        return self.nodes.rank == 0

    def open(self) -> Any:
        """The store of this launcher's life, with its address; made here where the run has one node."""
        if self.meeting is None:
            with quiet_torch():
                from launch.rendezvous import alone

            self.meeting = alone()
        return self.meeting

    def join(self) -> None:
        """Meets the other nodes' launchers. Raises ConfigError, RankFault where that fails or takes too long."""
        if self.nodes.count == 1:
            return
        endpoint, host = self.nodes.endpoint, socket.gethostname()
        assert endpoint is not None, "several nodes need an endpoint; the command checks it"
        listener = bind(endpoint, self.nodes.rank)
        waits = told_once(f"waiting for the launcher of node 0 at {endpoint}, up to {self.nodes.join_timeout_s:.0f} s")
        address = None if listener is not None else reach(endpoint, self.nodes.join_timeout_s, waits)
        with quiet_torch():
            from launch.rendezvous import meet

        rows = _Rows(lambda: meet(endpoint, listener, address, HANDSHAKE_S), self.nodes, host)
        rows.start()
        answers = told_once(f"something listens at {endpoint}; waiting until it answers as a launcher of this run")
        end = time.monotonic() + 1.5 * HANDSHAKE_S  # a store's own limit is not always kept
        while not rows.joined.wait(_POLL_S):
            if time.monotonic() > end:
                raise RankFault(
                    f"--rendezvous {endpoint}: what listens there does not answer as a launcher of this run; choose another "
                    "port, the same on all nodes"
                )
            answers()
        self.meeting, self._rows = rows.meeting, rows
        if rows.error is not None:
            self._rows = None
            raise rows.error
        self.nodes = replace(self.nodes, rank=rows.number)

    def meet(self, hosts: dict[int, str]) -> None:
        """Notes the names of the other nodes, on node 0."""
        self.nodes = replace(self.nodes, hosts=(socket.gethostname(), *(hosts[node] for node in sorted(hosts))))

    def publish(self, **fields: Any) -> None:
        """Changes this node's row."""
        if self._rows is not None:
            self._rows.publish(fields)

    def rows(self) -> dict[int, dict[str, Any]]:
        """Those of the other nodes, as far as this one reads them."""
        return self._rows.read() if self._rows is not None else {}

    def named(self, node: int) -> str:
        """Another node, by its host's name where it is known."""
        return self.rows().get(node, {}).get("host") or self.nodes.named(node)

    def check(self) -> None:
        """Raises the verdict, LostNode, or what ended another node: whatever ends this launch from outside."""
        rows = self.rows()
        verdict = rows.get(0, {}).get("verdict")
        if verdict is not None and verdict["code"]:
            raise error_of_code(verdict["code"], verdict["message"])
        for node, row in rows.items():
            if self.leads and "stop" in row:
                raise error_of_code(row["stop"]["code"], f"{self.named(node)}: {row['stop']['message']}")
        if lost := self._lost():
            raise LostNode([self.named(node) for node in lost], self.nodes.lost_s)

    def wait(self, look: Callable[[], _Found | None], timeout_s: float | None = None) -> _Found | None:
        """What `look` finds; None after the timeout. Raises what `check` does."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if (found := look()) is not None:
                return found
            self.check()
            if end is not None and time.monotonic() > end:
                return None
            time.sleep(_POLL_S)

    def gather(self, field: str, timeout_s: float, generation: int = 0) -> dict[int, Any]:
        """A field of all other nodes' rows, on node 0. Raises RankFault that names who did not tell it in time.

        Args:
            field: of the row.
            timeout_s: for how long it is waited for.
            generation: that the field must be of, where it has one.
        """
        wanted = range(1, self.nodes.count)

        waits = told_once(f"waiting for the launchers of the other nodes, up to {timeout_s:.0f} s")

        def told() -> dict[int, Any]:
            waits()
            rows = self.rows()
            found = {node: rows[node][field] for node in wanted if field in rows.get(node, {})}
            return {node: value for node, value in found.items() if value.get("generation", 0) == generation}

        found = self.wait(lambda: found if len(found := told()) == len(wanted) else None, timeout_s)
        if found is None:
            raise RankFault(self._missing([node for node in wanted if node not in told()], timeout_s))
        return found

    def _missing(self, missing: list[int], timeout_s: float) -> str:
        rows = self.rows()
        absent = [str(node) for node in missing if "host" not in rows.get(node, {})]
        if absent:
            return (
                f"--rendezvous {self.nodes.endpoint}: {len(absent)} of {self.nodes.count} nodes (number {', '.join(absent)}) did "
                f"not come within {timeout_s:.0f} s; start the same command on each, and see why theirs ended"
            )
        named = ", ".join(rows[node]["host"] for node in missing)
        return f"{named}: not ready within {timeout_s:.0f} s"

    def _lost(self) -> list[int]:
        """Nodes that have joined, and were not heard of since."""
        return self._rows.lost(self.nodes.lost_s) if self._rows is not None else []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._rows is None:
            return
        try:
            if self.leads:
                self._give_verdict(error)
            elif error is None:
                self._leave()
            elif (told := self._hear_verdict(error)) is not None:
                raise told from None
        finally:
            self._rows.close()

    def _give_verdict(self, error: BaseException | None) -> None:
        """Node 0 tells how the launch ended, and holds the store until the others know."""
        code = 0 if error is None else error.exit_code if isinstance(error, PretrainError) else RankFault.exit_code
        self.publish(verdict={"code": code, "message": told_of(error)})
        end = time.monotonic() + FAREWELL_S

        def waiting() -> bool:
            lost = self._lost()
            return any(node not in lost and row and "left" not in row for node, row in self.rows().items())

        while waiting() and time.monotonic() < end:
            time.sleep(_POLL_S)

    def _hear_verdict(self, error: BaseException) -> PretrainError | None:
        """Another node tells what ended it, and gets what ends all."""
        if not isinstance(error, LostNode):
            code = error.exit_code if isinstance(error, PretrainError) else RankFault.exit_code
            self.publish(stop={"code": code, "message": told_of(error)})
        end, told = time.monotonic() + FAREWELL_S, None
        while told is None and time.monotonic() < end and not self._lost():
            told = self.rows().get(0, {}).get("verdict")
            time.sleep(_POLL_S)
        self._leave()
        if told is None or not told["code"] or not isinstance(error, PretrainError):
            return None
        return error_of_code(told["code"], told["message"])

    def _leave(self) -> None:
        """Tells node 0 that its verdict was read."""
        if self._rows is not None:
            self._rows.publish({"left": True})
            self._rows.flush(FAREWELL_S)


def told_of(error: BaseException | None) -> str:
    """An error in words."""
    if error is None or isinstance(error, PretrainError):
        return str(error or "")
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextmanager
def gathered(nodes: Nodes) -> Iterator[Crew]:
    """The crew of a launch, which has met. Raises ConfigError, RankFault."""
    crew = Crew(nodes)
    with crew:
        crew.join()
        yield crew


class _Rows(threading.Thread):
    """The rows in the store, written and read on a thread of its own."""

    def __init__(self, meet: Callable[[], Any], nodes: Nodes, host: str) -> None:
        super().__init__(name="heartbeat", daemon=True)
        self.joined = threading.Event()
        self.meeting: Any = None
        self.number = -1
        self.error: Exception | None = None
        self._meet, self._nodes, self._host = meet, nodes, host
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._mine: dict[str, Any] = {"host": host}
        self._theirs: dict[int, dict[str, Any]] = {}
        self._raw: dict[int, bytes] = {}
        self._heard: dict[int, float] = {}
        self._changes = self._sent = 0
        self._broken = False

    def run(self) -> None:
        """Joins, then beats until it is closed or the store is gone."""
        try:
            self.meeting = self._meet()
            self.number = self._claim(self.meeting.store)
        except Exception as error:
            self.error = error
            return
        finally:
            self.joined.set()
        beat = 0
        try:
            while not self._closing.is_set():
                beat += 1
                self._round(self.meeting.store, beat)
                self._wake.wait(BEAT_S)
                self._wake.clear()
        except RuntimeError:  # torch's, of a store that went with node 0: that nothing is heard any more says it
            pass
        finally:
            self._broken = not self._closing.is_set()

    def _claim(self, store: Store) -> int:
        """The number of this node. Raises ConfigError where it is taken, or none is left."""
        name = f"{self._host} {time.time_ns()}"
        if self.meeting.leads:
            for node in range(self._nodes.count):
                store.set(_row_key(node), "{}")
            store.set(_COUNT, str(self._nodes.count))
            return 0
        count = int(store.get(_COUNT))
        if count != self._nodes.count:
            raise ConfigError(
                f"--nnodes {self._nodes.count}: node 0 was started with --nnodes {count}; give the same on all"
            )
        if self._nodes.rank is not None:
            if (holder := _holder(store, self._nodes.rank, name)) != name:
                raise ConfigError(
                    f"--node-rank {self._nodes.rank} is taken by {holder.rpartition(' ')[0]} already; give each node its own, or "
                    "leave it out on all"
                )
            return self._nodes.rank
        first = store.add(_ARRIVALS, 1)
        for step in range(count - 1):
            node = 1 + (first - 1 + step) % (count - 1)
            if _holder(store, node, name) == name:
                return node
        raise ConfigError(f"--nnodes {count}: {count} nodes have come already, this one ({self._host}) is one too many")

    def _round(self, store: Store, beat: int) -> None:
        with self._lock:
            changes, mine = self._changes, {**self._mine, "beat": beat}
        store.set(_row_key(self.number), json.dumps(mine))
        others = range(1, self._nodes.count) if self.number == 0 else range(1)
        found = store.multi_get([_row_key(node) for node in others])
        now = time.monotonic()
        with self._lock:
            self._sent = changes
            for node, text in zip(others, found, strict=True):
                if text != self._raw.get(node, b"{}"):
                    self._theirs[node] = json.loads(text)
                    self._heard[node], self._raw[node] = now, text
            if self.number:
                self._heard.setdefault(0, now)

    def publish(self, fields: dict[str, Any]) -> None:
        """Lays fields over this node's row, which is sent at once."""
        with self._lock:
            self._mine |= fields
            self._changes += 1
        self._wake.set()

    def flush(self, timeout_s: float) -> None:
        """Returns when all that was published is in the store, or cannot be."""
        end = time.monotonic() + timeout_s
        while self._sent < self._changes and self.is_alive() and time.monotonic() < end:
            time.sleep(_POLL_S / 5)

    def read(self) -> dict[int, dict[str, Any]]:
        """The last row of each node that was heard of."""
        with self._lock:
            return dict(self._theirs)

    def lost(self, after_s: float) -> list[int]:
        """Nodes that were heard of, and then not for so long; node 0 at once where its store is gone."""
        with self._lock:
            if self._broken and self.number:
                return [0]
            now = time.monotonic()
            return [node for node, heard in self._heard.items() if now - heard > after_s]

    def close(self) -> None:
        """Ends the thread; one that hangs in the store is left behind."""
        self._closing.set()
        self._wake.set()
        self.join(1.0)


_COUNT = "pretrain/nodes"
_ARRIVALS = "pretrain/arrivals"


def _row_key(node: int) -> str:
    return f"pretrain/row/{node}"


def _holder(store: Store, node: int, name: str) -> str:
    """Who has a number: `name`, where nobody had it."""
    return store.compare_set(f"pretrain/claim/{node}", "", name).decode()
