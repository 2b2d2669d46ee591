"""What preflight found on each node, and the judgement of all of it: pure functions over small files, without torch.

A slow node is slow with every partner, a partner of one only with it: nodes are held against the median of the best that each
reached. Two nodes share their one figure; of them a floor alone can say something, and not which of them is at fault.
"""

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.files import write_atomically

SLOW_SHARE = 1 / 3
"""Of the median best, below which a node is slow. Links that are shared by design differ by up to 2."""
MAX_LISTED = 64
"""Nodes in the table; of a larger job, those that are not fit come first."""


@dataclass(frozen=True)
class Floors:
    """What a node must have."""

    gpus: int = 0
    memory_gib: float = 0
    """Available, of the machine's memory."""
    disk_gib: float = 0
    """Free in each folder that is written."""
    gbit_s: float = 0
    """Of an all-reduce between two nodes."""


@dataclass(frozen=True)
class Measured:
    """An all-reduce with one other node."""

    peer: str
    gbit_s: float | None
    fault: str | None = None
    """Why there is no figure."""


@dataclass(frozen=True)
class NodeReport:
    """What one node said of itself."""

    node: str
    gpus: int = 0
    gpu_fault: str | None = None
    """A GPU that cannot be used, and how."""
    memory_gib: float = 0
    disk_gib: Mapping[str, float] = field(default_factory=dict)
    """Free, by folder."""
    code: Mapping[str, str] = field(default_factory=dict)
    """Hash of the program's files and versions of what it stands on, by name."""
    config: str | None = None
    """Hash of the config as composed there."""
    config_fault: str | None = None
    absent: tuple[int, ...] = ()
    """Numbers of nodes that did not come to measure, as node 0 saw it."""
    measured: tuple[Measured, ...] | None = None
    """None: the node did not get to the end."""

    @property
    def best_gbit_s(self) -> float | None:
        """The best that it reached with any other node."""
        return max((one.gbit_s for one in self.measured or () if one.gbit_s is not None), default=None)


@dataclass(frozen=True)
class Verdict:
    """What all reports say together."""

    bad: Mapping[str, str] = field(default_factory=dict)
    """Nodes that are not fit, and why."""
    wrong: str | None = None
    """What no other node would mend: configs or code that differ, or nothing that is fit."""


def write_report(folder: Path, report: NodeReport) -> None:
    """Leaves a node's report for the judge. Raises StorageError."""
    write_atomically(folder / f"{report.node}.json", json.dumps(asdict(report), indent=1))


def read_reports(folder: Path) -> list[NodeReport]:
    """The reports of a folder."""
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def _read(path: Path) -> NodeReport:
    row = json.loads(path.read_text())
    measured = row.pop("measured")
    absent = tuple(row.pop("absent"))
    return NodeReport(
        **row, absent=absent, measured=None if measured is None else tuple(Measured(**one) for one in measured)
    )


def judge(reports: Sequence[NodeReport], nodes: Sequence[str], floors: Floors) -> Verdict:
    """Names the nodes of a job that are not fit for it.

    Args:
        reports: that were written.
        nodes: of the job, node 0 first.
        floors: what each must have.
    """
    of_node = {report.node: report for report in reports}
    present = [of_node[node] for node in nodes if node in of_node]
    faults = [f"{report.node}: {report.config_fault}" for report in present if report.config_fault]
    if len(faults) == len(nodes):
        return Verdict(wrong=faults[0].partition(": ")[2])
    if differing := faults + _differing(present):
        return Verdict(wrong="; ".join(differing))
    poor = {report.node: why for report in present if (why := _lacks(report, floors))}
    if len(poor) == len(nodes) > 1:
        return Verdict(poor, wrong=f"no node has what is expected of it; {nodes[0]}: {poor[nodes[0]]}")
    alone = {node: why for node in nodes if (why := poor.get(node) or _unheard(node, of_node, nodes))}
    return Verdict(alone or _slow(present, floors))


def _lacks(report: NodeReport, floors: Floors) -> str | None:
    """What a node by itself has too little of."""
    if report.gpus < floors.gpus:
        return f"{report.gpus} of {floors.gpus} GPUs"
    if report.gpu_fault:
        return report.gpu_fault
    if report.memory_gib < floors.memory_gib:
        return f"{report.memory_gib:.1f} GiB of memory available, {floors.memory_gib:g} are wanted"
    for folder, free in report.disk_gib.items():
        if free < floors.disk_gib:
            return f"{free:.1f} GiB free in {folder}, {floors.disk_gib:g} are wanted"
    return None


def _unheard(node: str, of_node: Mapping[str, NodeReport], nodes: Sequence[str]) -> str | None:
    """Whether a node did not come, or did not get to the end."""
    report = of_node.get(node)
    if report is None:
        return "did not come to preflight"
    first = of_node.get(nodes[0])
    if first is not None and nodes.index(node) in first.absent:
        return f"did not come to measure the network with {nodes[0]}"
    if report.measured is None and (first is None or first.measured is not None or node == nodes[0]):
        return "did not get to the end of preflight"
    return None


def _slow(reports: Sequence[NodeReport], floors: Floors) -> dict[str, str]:
    """Nodes that reach less than they should with every partner, or nobody at all."""
    deaf = {}
    for report in reports:
        faults = [one for one in report.measured or () if one.fault]
        if faults and report.best_gbit_s is None:
            deaf[report.node] = f"no all-reduce with {', '.join(one.peer for one in faults)}: {faults[0].fault}"
    if deaf:
        return _culprits(deaf, reports)
    bests = {report.node: best for report in reports if (best := report.best_gbit_s) is not None}
    floor = floors.gbit_s
    if len(bests) > 2:
        floor = max(floor, SLOW_SHARE * statistics.median(bests.values()))
    return {node: f"{best:.2g} Gbit/s at best, {floor:.2g} are wanted" for node, best in bests.items() if best < floor}


def _culprits(deaf: Mapping[str, str], reports: Sequence[NodeReport]) -> dict[str, str]:
    """Of nodes that measured nothing: those that failed with a partner who did measure with others, where there are such."""
    heard = {report.node for report in reports if report.best_gbit_s is not None}
    sure = {r.node: deaf[r.node] for r in reports if r.node in deaf and any(m.peer in heard for m in r.measured or ())}
    return sure or dict(deaf)


def _differing(reports: Sequence[NodeReport]) -> list[str]:
    """What is not the same on all nodes though it must be: config, code, versions."""
    facts = {report.node: {**report.code, "config": report.config or ""} for report in reports}
    told = []
    for name in dict.fromkeys(name for of_node in facts.values() for name in of_node):
        values = {node: of_node.get(name, "missing") for node, of_node in facts.items()}
        usual, _ = Counter(values.values()).most_common(1)[0]
        if others := {node: value for node, value in values.items() if value != usual}:
            told.append(
                f"{name} is {usual[:12]}, but " + ", ".join(f"{value[:12]} on {node}" for node, value in others.items())
            )
    return told


def table(reports: Sequence[NodeReport], nodes: Sequence[str], verdict: Verdict) -> str:
    """All nodes, a line each, for the job's log."""
    of_node = {report.node: report for report in reports}
    shown = sorted(nodes, key=lambda node: node not in verdict.bad)[:MAX_LISTED]
    rows = [("node", "GPUs", "memory", "disk", "Gbit/s", "")]
    for node in sorted(shown, key=list(nodes).index):
        report, word = of_node.get(node), verdict.bad.get(node, "fit")
        if report is None:
            rows.append((node, "", "", "", "", word))
            continue
        disk, best = min(report.disk_gib.values(), default=0), report.best_gbit_s
        network = "" if best is None else f"{best:.3g}"
        rows.append((node, str(report.gpus), f"{report.memory_gib:.0f} GiB", f"{disk:.0f} GiB", network, word))
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *([f"and {len(nodes) - len(shown)} more"] if len(nodes) > len(shown) else [])])


def floors_of(environment: Mapping[str, str]) -> Floors:
    """As the cluster's variables say. Raises ConfigError for what is no number."""

    def number(name: str) -> float:
        text = environment.get(f"PRETRAIN_{name}") or "0"
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not 0 <= value < float("inf"):
            raise ConfigError(f"PRETRAIN_{name}={text} must be a number from 0 on")
        return value

    return Floors(
        gpus=int(number("GPUS_PER_NODE")),
        memory_gib=number("MIN_MEMORY_GIB"),
        disk_gib=number("MIN_DISK_GIB"),
        gbit_s=number("MIN_GBIT_S"),
    )


def reports_folder(run_dir: Path, job: int, restart: int) -> Path:
    """Where the nodes of one start of a job leave their reports."""
    return run_dir / "logs" / f"preflight-{job}-{restart}"
