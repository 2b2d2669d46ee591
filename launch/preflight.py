"""`python -m launch.preflight CONFIG --rendezvous HOST:PORT --node-rank K`, once on each node of a job before ranks start there.

A node tells what it has and runs, tries its GPUs, and times an all-reduce with a few others: in each round nodes are paired
anew (the circle method), so that the time does not grow with the job. Every wait has an end, and the report is written before the
first: a node that hangs is named by the judge (`launch.node_reports`), which runs afterwards on what lies in the run's folder.

Exit code 0 whatever was found. The store, like a launcher's, has no authentication: it belongs on a private network.
"""

import argparse
import faulthandler
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from launch.agreement import code_hash
from launch.cli import exit_code_of
from launch.machine import gpu_capabilities
from launch.node_reports import Measured, NodeReport, reports_folder, write_report
from launch.slurm_job import port_of
from pretrain.config import load_config
from pretrain.errors import PretrainError
from pretrain.files import hash_bytes
from pretrain.metrics.facts import installed_versions

ARRIVE_S = 180.0
"""From a node's first word to the last one's; torch is imported in between, which a cold file system makes long."""
ROUND_S = 20.0
"""How long an all-reduce may take, its connection included."""
LIMIT_S = 300.0
"""The end of a process that hangs beyond its own deadlines (a driver that does not return)."""
MAX_ROUNDS = 3
TIMED = 3
"""All-reduces of a round, of which the fastest counts; one more goes before."""
Backend = Literal["gloo", "nccl"]
PAYLOAD_BYTES: Mapping[Backend, int] = {"gloo": 16 << 20, "nccl": 256 << 20}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.preflight", allow_abbrev=False)
    parser.add_argument("config")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--allow-change", action="append", help="for the launcher")
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT")
    parser.add_argument("--node-rank", type=int, required=True)
    arguments = parser.parse_args(argv)
    os.environ["TORCH_NCCL_BLOCKING_WAIT"] = "1"  # a dead partner is an error, not the end of the process
    os.environ["OMP_NUM_THREADS"] = "1"
    faulthandler.dump_traceback_later(LIMIT_S, exit=True)
    return exit_code_of(lambda: _preflight(arguments, os.environ))


def _preflight(arguments: argparse.Namespace, environment: Mapping[str, str]) -> None:
    job, restart = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_RESTART_COUNT") or 0)
    run_dir = Path(environment["PRETRAIN_RUN_DIR"])
    folder = reports_folder(run_dir, job, restart)
    scratch = environment.get("PRETRAIN_SCRATCH")
    report = facts_of(arguments, [run_dir, *([Path(scratch)] if scratch else [])], environment)
    write_report(folder, report)
    if report.gpus:
        report = replace(report, gpu_fault=gpu_fault(report.gpus))
        write_report(folder, report)
    host = arguments.rendezvous.rpartition(":")[0]
    meeting = Meeting(host, port_of(job, restart, slot=1), arguments.node_rank, int(environment["SLURM_NNODES"]))
    absent, measured = measure(meeting, report.node, "nccl" if report.gpus else "gloo")
    write_report(folder, replace(report, absent=absent, measured=measured))


def facts_of(arguments: argparse.Namespace, folders: Sequence[Path], environment: Mapping[str, str]) -> NodeReport:
    """What can be said without torch.

    Args:
        arguments: with `config` and `overrides`.
        folders: that the run writes.
        environment: of the process.
    """
    config, config_fault = None, None
    try:
        loaded = load_config(arguments.config, arguments.overrides)
        config = hash_bytes(json.dumps(loaded.model_dump(mode="json"), sort_keys=True).encode())
    except PretrainError as error:
        config_fault = str(error)
    return NodeReport(
        node=environment.get("SLURMD_NODENAME") or platform.node(),
        gpus=len(gpu_capabilities()),
        memory_gib=available_gib(),
        disk_gib={str(folder): free_gib(folder) for folder in folders},
        code={
            "code": code_hash(),
            "python": platform.python_version(),
            **installed_versions(),
        },
        config=config,
        config_fault=config_fault,
    )


def available_gib() -> float:
    """Memory that is available to new programs; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), 0)
    return kib / 2**20


def free_gib(folder: Path) -> float:
    """What is free where a folder is, or would be; 0 where it cannot be seen."""
    try:
        place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
        return shutil.disk_usage(place).free / 2**30
    except OSError:
        return 0


def gpu_fault(gpus: int) -> str | None:
    """What is wrong with a GPU of this node: it cannot allocate, or multiplies wrongly. None where all are well."""
    import torch

    for index in range(gpus):
        try:
            ones = torch.ones(1024, 1024, device=f"cuda:{index}", dtype=torch.bfloat16)
            if not bool((ones @ ones == 1024).all()):
                return f"GPU {index} multiplies wrongly"
        except (RuntimeError, AssertionError) as error:
            return f"GPU {index}: {str(error).splitlines()[0]}"
    return None


@dataclass(frozen=True)
class Meeting:
    """Where the nodes find each other."""

    host: str
    port: int
    rank: int
    """Of this node."""
    nodes: int


def measure(meeting: Meeting, name: str, backend: Backend) -> tuple[tuple[int, ...], tuple[Measured, ...]]:
    """All-reduces with other nodes.

    Args:
        meeting: with them.
        name: of this node.
        backend: of the all-reduce.

    Returns:
        numbers of the nodes that did not come, as node 0 saw it (elsewhere none); what was measured
    """
    if meeting.nodes == 1:
        return (), ()
    from torch.distributed import DistError, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    first, wait = meeting.rank == 0, timedelta(seconds=ARRIVE_S)
    try:
        store = TCPStore(meeting.host, meeting.port, None, first, timeout=wait, wait_for_workers=False)
        store.set(f"arrived/{meeting.rank}", name)
        if first:
            store.set("roster", json.dumps(_arrived(store, meeting.nodes)))
        store.wait(["roster"], wait + timedelta(seconds=ROUND_S))
        roster = {int(rank): node for rank, node in json.loads(store.get("roster")).items()}
    except DistError as error:
        return (), (Measured(meeting.host, None, _first_line(error)),)
    absent = tuple(sorted(set(range(meeting.nodes)) - roster.keys()))
    if meeting.rank in absent:
        return (), ()
    measured = tuple(_rounds(store, meeting.rank, roster, backend))
    _leave(store, meeting.rank, list(roster))
    return absent if first else (), measured


def _rounds(store: Any, rank: int, roster: Mapping[int, str], backend: Backend) -> Iterator[Measured]:
    """The all-reduces of one node, by its number, with partners out of those that came."""
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

    ranks, begin = sorted(roster), time.monotonic()
    for number in range(min(MAX_ROUNDS, rounds_of(len(ranks)))):
        partner = partner_of(ranks.index(rank), number, len(ranks))
        if partner is None:
            continue
        pair = sorted((rank, ranks[partner]))
        # A round ends for all at the same time: who waited for a dead partner is not late for the next.
        end = begin + ROUND_S * (number + 1)
        yield _with(roster[ranks[partner]], PrefixStore(f"{number}/{pair[0]}", store), pair.index(rank), backend, end)


def rounds_of(count: int) -> int:
    """Rounds in which each of some nodes meets each other one."""
    return count - 1 + count % 2 if count > 1 else 0


def partner_of(place: int, number: int, count: int) -> int | None:
    """Whom a node is paired with in a round, of so many that no pair comes twice; None where it has none (circle method).

    Args:
        place: of the node, from 0.
        number: of the round, from 0.
        count: of the nodes.
    """
    seats = count + count % 2
    circle = seats - 1  # the last seat stays where it is, the others go round
    if place == circle:
        partner = number * (seats // 2) % circle
    else:
        partner = (number - place) % circle
        partner = circle if partner == place else partner
    return partner if partner < count else None


def _arrived(store: Any, nodes: int) -> dict[int, str]:
    """The nodes that come in time, by number."""
    from torch.distributed import DistError

    end, names = time.monotonic() + ARRIVE_S, {}
    for rank in range(nodes):
        left = max(0.1, end - time.monotonic())
        with suppress(DistError):
            store.wait([f"arrived/{rank}"], timedelta(seconds=left))
            names[rank] = store.get(f"arrived/{rank}").decode()
    return names


def _with(peer: str, store: Any, rank: int, backend: Backend, end: float) -> Measured:
    """Times all-reduces of two nodes; `end`, on the monotonic clock, is when an answer is no longer waited for."""
    import torch
    from torch import distributed

    device = "cuda:0" if backend == "nccl" else "cpu"
    left = timedelta(seconds=max(1.0, end - time.monotonic()))
    try:
        distributed.init_process_group(backend, store=store, rank=rank, world_size=2, timeout=left)
        try:
            payload = torch.zeros(PAYLOAD_BYTES[backend] // 4, device=device)
            seconds = min([_all_reduce_s(payload) for _ in range(1 + TIMED)][1:])
        finally:
            distributed.destroy_process_group()
    except RuntimeError as error:
        return Measured(peer, None, _first_line(error))
    return Measured(peer, round(8e-9 * PAYLOAD_BYTES[backend] / seconds, 3))


def _all_reduce_s(payload: Any) -> float:
    """Seconds of one. Of two nodes each sends the payload once, and receives it once."""
    import torch
    from torch import distributed

    begin = time.perf_counter()
    distributed.all_reduce(payload)
    if payload.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _leave(store: Any, rank: int, ranks: Sequence[int]) -> None:
    """Node 0 holds the store, and outlasts the others, which may have a round more that fails."""
    from torch.distributed import DistError

    with suppress(DistError):
        store.set(f"left/{rank}", "1")
        if rank == 0:
            store.wait([f"left/{other}" for other in ranks], timedelta(seconds=ROUND_S * MAX_ROUNDS))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


if __name__ == "__main__":
    sys.exit(main())
