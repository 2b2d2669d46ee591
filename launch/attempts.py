"""A launch from its first attempt to its end: ranks are started again in place after a fault, as often as was asked for.

Each attempt is a launch of its own to everybody else: a generation with a row in attempts.jsonl and a folder of logs, on the
checkpoint that is newest then. What is counted are faults in a row without a new checkpoint in between: a run that
gets on may have any number. Node 0 decides; the others report how their ranks ended and do as it says.
"""

import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.crew import Crew, told_of
from launch.endings import Cause, Faults, LostNode, cause_of, may_restart
from launch.ranks import Ended, RankJob, run_ranks
from launch.signals import EndingSignals
from pretrain.checkpoint.format import latest_checkpoint
from pretrain.errors import PretrainError, RankFault
from pretrain.guard.fault_file import Fault, read_faults
from pretrain.metrics.facts import redact
from pretrain.metrics.jsonl import EVENTS_FILE, JsonLinesFile

STOPPED_TIMEOUT_S = 60.0
"""How long node 0 waits until another node's ranks have ended, once its own have."""
ENDED = "launch_ended"
"""Kind of a launch's last event."""
FAULTS_TOLD = 16
"""Of each node; a thousand ranks that say the same need not all be heard."""

_DONE = "every rank reached the end of the run"


@dataclass(frozen=True)
class Attempts:
    """What is attempted."""

    job: Callable[[int], RankJob]
    """The ranks of this node, for a generation."""
    run_dir: Path
    register: Callable[[int | None], int]
    """Notes an attempt in the run's folder, with the generation before it; returns its own. Called on node 0 alone."""
    max_restarts: int
    """Faults in a row, without a new checkpoint, after which ranks are started again."""
    again: str
    """The command that continues the run."""
    tell: Callable[[str], None]


def lead(attempts: Attempts, crew: Crew, signals: EndingSignals) -> bool:
    """The launch on node 0. Raises the error that ends it; returns True where every rank reached the end of the run."""
    generation = attempts.register(None)
    faults, told = Faults(0, newest_step(attempts.run_dir)), ""
    while True:
        crew.publish(generation=generation, told=told)
        with _noted(attempts.run_dir, generation) as end:
            job = attempts.job(generation)
            ended, found = _attempt(job, crew, signals)
            cause = cause_of(ended, found, attempts.run_dir, crew.nodes, job.local_ranks)
            if cause is None:
                _note(
                    attempts.run_dir,
                    ENDED,
                    generation,
                    message=_DONE,
                    exit_code=0,
                    step=newest_step(attempts.run_dir),
                    **end,
                )
                return True
            if cause.rank is not None:
                end |= {"rank": cause.rank, "node": crew.nodes.named(cause.rank // job.local_ranks)}
            faults = faults.one_more(newest_step(attempts.run_dir))
            if not may_restart(cause, ended, faults, attempts.max_restarts):
                raise cause.error(attempts.again)
            following = attempts.register(generation)  # raises where another launch has begun: then this one is over
            told = _restart_line(cause, faults, attempts.max_restarts)
            fields = {**end, "restarts": faults.count, "step": faults.step, "noticed": ended.noticed}
            _note(attempts.run_dir, "restart", generation, message=told, **fields)
            attempts.tell(told)
            generation = following


@contextmanager
def _noted(run_dir: Path, generation: int) -> Iterator[dict[str, Any]]:
    """Notes the end of the launch where it ends within; what it yields names the culprit."""
    end: dict[str, Any] = {"rank": None, "node": None}
    try:
        yield end
    except BaseException as error:
        if isinstance(error, LostNode):
            end |= {"node": error.nodes[0]}
        code = error.exit_code if isinstance(error, PretrainError) else RankFault.exit_code
        _note(run_dir, ENDED, generation, message=told_of(error), exit_code=code, step=newest_step(run_dir), **end)
        raise


def follow(attempts: Attempts, crew: Crew, signals: EndingSignals) -> bool:
    """The launch on another node. Raises node 0's verdict; returns whether anything was run."""
    generation = 0
    while True:
        last = generation

        def begins(after: int = last) -> dict[str, Any] | None:
            row = crew.rows().get(0, {})
            return row if "verdict" in row or row.get("generation", 0) > after else None

        row = crew.wait(begins)
        assert row is not None
        if "verdict" in row:
            crew.check()
            return generation > 0
        generation = row["generation"]
        if row["told"]:
            attempts.tell(row["told"])
        ended = run_ranks(attempts.job(generation), crew, signals)
        report = {"generation": generation, **_report(ended, read_faults(attempts.run_dir, generation))}
        crew.publish(ended=report)


def _attempt(job: RankJob, crew: Crew, signals: EndingSignals) -> tuple[Ended, list[Fault]]:
    """Runs an attempt on all nodes; how all ranks ended, and what they wrote of it."""
    ended = run_ranks(job, crew, signals)
    reports = [_report(ended, read_faults(job.run_dir, job.generation))]
    reports += crew.gather("ended", STOPPED_TIMEOUT_S, job.generation).values()
    return _merged(job.generation, reports)


def _report(ended: Ended, faults: list[Fault]) -> dict[str, Any]:
    """How the ranks of a node ended, for node 0."""
    return {
        "exits": list(ended.exits.items()),
        "noticed": ended.noticed,
        "forwarded": [signum.name for signum in ended.forwarded],
        "killed_by_user": ended.killed_by_user,
        "faults": [asdict(fault) for fault in faults[:FAULTS_TOLD]],
    }


def _merged(generation: int, reports: Sequence[Mapping[str, Any]]) -> tuple[Ended, list[Fault]]:
    """How all ranks ended. Nodes that share the folder read each other's faults."""
    whole, faults = Ended(generation), {}
    for report in reports:
        whole.exits |= {int(rank): int(code) for rank, code in report["exits"]}
        whole.forwarded += [signal.Signals[name] for name in report["forwarded"]]
        whole.noticed = min((at for at in (whole.noticed, report["noticed"]) if at is not None), default=None)
        whole.killed_by_user = whole.killed_by_user or report["killed_by_user"]
        faults |= {fault["rank"]: Fault(**fault) for fault in report["faults"]}
    return whole, sorted(faults.values(), key=lambda fault: fault.time)


def newest_step(run_dir: Path) -> int | None:
    """Of the newest checkpoint."""
    newest = latest_checkpoint(run_dir)
    return newest.step if newest is not None else None


def _restart_line(cause: Cause, faults: Faults, max_restarts: int) -> str:
    goes_on = (
        "the start: there is no checkpoint yet" if faults.step is None else f"the checkpoint of step {faults.step:,}"
    )
    return f"restart {faults.count} of {max_restarts}: {cause.told}; going on from {goes_on}"


def _note(run_dir: Path, kind: str, generation: int, **fields: Any) -> None:
    file = JsonLinesFile(run_dir / EVENTS_FILE, print)
    row = {"kind": kind, "attempt": generation, "time": round(time.time(), 3), "generation": generation, **fields}
    file.append(redact(row))
    file.close()
