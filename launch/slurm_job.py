"""What a Slurm job does next: the decisions of slurm/train.sbatch, as pure functions, and the command that it asks.

    python -m launch.slurm_job run-dir CONFIG [--set FIELD=VALUE ...]
    python -m launch.slurm_job start|preflight|launch [--code N] [--asked] --nodes HOSTS --excluded HOSTS --up HOSTS

The first writes the run's folder. The others write one line, `ACTION CODE WORD`: go on (WORD: host and port of the rendezvous),
requeue (WORD: nodes to exclude, or nothing), or stop with the exit code. Why goes to stderr, the job's log, and to the run's
events.jsonl as a row of kind `job`: the rows are the job's whole memory, for a requeued job has no other.

The exit code of srun is the largest of its tasks', and of tasks that were ended because another had failed: where the launcher of
node 0 has noted how it ended (`launch_ended`), that holds. Commands of Slurm are the batch script's, for a container has none.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch.cli import exit_code_of
from launch.node_reports import floors_of, judge, read_reports, reports_folder, table
from pretrain.checkpoint.format import latest_checkpoint
from pretrain.config import load_config
from pretrain.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    Preempted,
    RankFault,
    StorageError,
)
from pretrain.files import append_json_line, read_json_lines
from pretrain.metrics.facts import redact
from pretrain.metrics.jsonl import ATTEMPTS_FILE, EVENTS_FILE

Action = Literal["go", "requeue", "leave", "stop"]
Policy = Literal["requeue", "chain", "never"]
Row = Mapping[str, Any]

POLICIES: Mapping[str, Policy] = {"requeue": "requeue", "chain": "chain", "never": "never"}
FIRST_PORT = 20_000
PORTS_OF_A_JOB = 10
"""Ports that a job has to itself, for its launchers, preflight, Ray."""
_JOBS = 1_000
_A_RESTART = 617
"""Jobs from one restart's ports to the next: prime to their number, and far from the near numbers of jobs that run together."""

_FINAL = {
    ConfigError.exit_code: "the config or the command is wrong",
    DataError.exit_code: "the data are missing or damaged",
    CheckpointError.exit_code: "the checkpoint does not fit or is damaged",
    StorageError.exit_code: "the disk is full, or a folder cannot be written",
    Interrupted.exit_code: "stopped by Ctrl-C",
}
"""Exit codes that the same command would end with again."""


@dataclass(frozen=True)
class JobFacts:
    """The job as Slurm and the one who submitted it describe it."""

    job: int
    restart: int
    """How often Slurm started it before."""
    nodes: tuple[str, ...]
    """Of this start, node 0 first."""
    excluded: tuple[str, ...] = ()
    """Nodes that it does not run on."""
    up: tuple[str, ...] = ()
    """Nodes of its partition that could run a job."""
    policy: Policy = "requeue"
    """What becomes of a job that could go on: it is queued again, or leaves it to the next job of its chain, or nothing."""
    chain: str | None = None
    max_faults: int = 3
    """Faults in a row, without a new checkpoint in between, after which the run is given up."""
    run_dir: Path = Path()


@dataclass(frozen=True)
class Outcome:
    """How a stage of the job ended."""

    code: int
    """Of the house, or whatever srun gave."""
    message: str
    nodes: tuple[str, ...] = ()
    """The culprits."""
    trained: bool = False
    """The run is at its last step."""


@dataclass(frozen=True)
class Decision:
    """What the job does next."""

    action: Action
    exit_code: int
    message: str
    exclude: tuple[str, ...] = ()
    """Nodes that are to be excluded from now on."""
    faults: int = 0
    """In a row, this one included."""
    over: bool = False
    """No later job of the chain has anything to do."""


def port_of(job: int, restart: int, slot: int = 0) -> int:
    """A port for a start of a job: below Linux's ephemeral ports, another one at each restart.

    Args:
        job: its number.
        restart: SLURM_RESTART_COUNT.
        slot: which of the job's ports: 0 launchers, 1 preflight; below PORTS_OF_A_JOB.
    """
    assert 0 <= slot < PORTS_OF_A_JOB
    return FIRST_PORT + PORTS_OF_A_JOB * ((job + _A_RESTART * restart) % _JOBS) + slot


def rendezvous(facts: JobFacts) -> str:
    """HOST:PORT where the launchers of a start meet: the first node's."""
    return f"{facts.nodes[0]}:{port_of(facts.job, facts.restart)}"


def at_start(facts: JobFacts, events: Sequence[Row]) -> Decision:
    """Whether the job has anything to do: a chain may have come to its end before."""
    ends = [row for row in _job_rows(events) if row.get("over") and row.get("chain") == facts.chain]
    if facts.chain is not None and ends:
        return Decision(
            "stop", _int(ends[-1].get("exit_code")), f"chain {facts.chain} has ended: {ends[-1].get('message')}"
        )
    again = f", restart {facts.restart}" if facts.restart else ""
    return Decision("go", 0, f"starts on {', '.join(facts.nodes)}{again}")


def outcome_of(code: int, asked: bool, facts: JobFacts, events: Sequence[Row], attempts: Sequence[Row]) -> Outcome:
    """How a launch ended.

    Args:
        code: of srun.
        asked: the job was told to give its nodes back.
        events, attempts: of the run; rows of other starts are left aside.
    """
    ended = _launch_ended(facts, events, attempts)
    if ended is None:
        if asked and code not in (0, *_FINAL, RankFault.exit_code):
            return Outcome(Preempted.exit_code, f"asked to stop before the ranks trained (srun ended with {code})")
        if code == Preempted.exit_code:  # of a launcher that was ended because another had failed
            return Outcome(RankFault.exit_code, f"a launcher ended before ranks were started (srun ended with {code})")
        return Outcome(code, f"srun ended with {code}", trained=code == 0)
    said, message = _int(ended.get("exit_code")), str(ended.get("message", "")).partition("\n")[0]
    if said == 0 and code != 0:
        if asked:
            return Outcome(
                Preempted.exit_code, f"trained; stopped within what follows (srun ended with {code})", trained=True
            )
        return Outcome(code, f"trained, but what follows training ended with {code}", trained=True)
    node = ended.get("node")
    return Outcome(said, message, (node,) if isinstance(node, str) else (), trained=said == 0)


def decide(outcome: Outcome, facts: JobFacts, events: Sequence[Row], step: int | None) -> Decision:
    """What is to be done after a stage that ended.

    Args:
        outcome: of the stage.
        facts: of the job.
        events: of the run, for the faults before this one.
        step: of the newest checkpoint.
    """
    if outcome.code == 0:
        return Decision("stop", 0, f"done: {outcome.message}", over=True)
    if outcome.code in _FINAL:
        return Decision("stop", outcome.code, f"stops, {_FINAL[outcome.code]}: {outcome.message}", over=True)
    if outcome.code == Preempted.exit_code:
        return _go_on(Decision("requeue", outcome.code, f"preempted: {outcome.message}"), facts)
    if outcome.trained:
        return Decision("stop", outcome.code, f"stops: {outcome.message}", over=True)
    faults = _faults_before(facts, events, step) + 1
    told = f"fault {faults} in a row without a new checkpoint: {outcome.message}"
    if faults > facts.max_faults:
        message = f"given up, {facts.max_faults} such faults are borne (PRETRAIN_MAX_FAULTS); {told}"
        return Decision("stop", RankFault.exit_code, message, faults=faults, over=True)
    exclude, refused = to_exclude(outcome.nodes, facts)
    return _go_on(Decision("requeue", RankFault.exit_code, told + refused, exclude, faults), facts)


def to_exclude(bad: Sequence[str], facts: JobFacts) -> tuple[tuple[str, ...], str]:
    """Which of the nodes may be excluded, and a word on those that may not: the job must be able to run on what is left."""
    by_name = {node.partition(".")[0]: node for node in facts.nodes}
    known = tuple(dict.fromkeys(by_name[short] for name in bad if (short := name.partition(".")[0]) in by_name))
    left = set(facts.up) - set(facts.excluded) - set(known)
    if not known or len(left) >= len(facts.nodes):
        return known, ""
    taken = f"the partition would have {len(left)} nodes left, and the job takes {len(facts.nodes)}"
    return (), f"; {', '.join(known)} not excluded: {taken}"


def _go_on(decision: Decision, facts: JobFacts) -> Decision:
    """A decision to queue the job again, as the policy wants it."""
    if facts.policy == "requeue":
        without = f", without {', '.join(decision.exclude)}" if decision.exclude else ""
        return replace(decision, message=f"queued again{without}; {decision.message}")
    if facts.policy == "chain":
        return replace(decision, action="leave", message=f"left to the next job of the chain; {decision.message}")
    return replace(decision, action="leave", message=f"ends, to be submitted again; {decision.message}")


def _launch_ended(facts: JobFacts, events: Sequence[Row], attempts: Sequence[Row]) -> Row | None:
    """The last row of kind launch_ended that a launch of this start of the job wrote."""
    mine = {"job": facts.job, "restart": facts.restart}
    generations = {row.get("generation") for row in attempts if row.get("slurm") == mine}
    ended = [row for row in events if row.get("kind") == "launch_ended" and row.get("generation") in generations]
    return ended[-1] if ended else None


def _faults_before(facts: JobFacts, events: Sequence[Row], step: int | None) -> int:
    """Faults in a row up to now of this job and its chain; none where a checkpoint is newer than the last one's.

    What is submitted anew after a run was given up begins at none: somebody has looked at it.
    """
    rows = [row for row in _job_rows(events) if row.get("faults") and _is_of(row, facts)]
    return _int(rows[-1].get("faults")) if rows and rows[-1].get("checkpoint") == step else 0


def _is_of(row: Row, facts: JobFacts) -> bool:
    return row.get("job") == facts.job or (facts.chain is not None and row.get("chain") == facts.chain)


def _job_rows(events: Sequence[Row]) -> list[Row]:
    return [row for row in events if row.get("kind") == "job"]


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    return exit_code_of(lambda: _command(sys.argv[1:] if argv is None else argv))


def _command(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m launch.slurm_job", allow_abbrev=False)
    stages = parser.add_subparsers(dest="stage", required=True)
    run_dir = stages.add_parser("run-dir", help="write the folder of a config's run")
    run_dir.add_argument("config")
    run_dir.add_argument("--set", dest="overrides", action="append", default=[])
    run_dir.add_argument("--allow-change", action="append", help="for the launcher")
    for name in ("start", "preflight", "launch"):
        stage = stages.add_parser(name, help="write what is to be done")
        stage.add_argument("--code", type=int, default=0, help="of srun")
        stage.add_argument("--asked", action="store_true", help="the nodes are wanted back")
        for hosts in ("--nodes", "--excluded", "--up"):
            stage.add_argument(hosts, default="", help="names of hosts")
    arguments = parser.parse_args(argv)
    if arguments.stage == "run-dir":
        print(load_config(arguments.config, arguments.overrides).run_dir.absolute())
        return
    facts = _facts(arguments, os.environ)
    decision = _decision(arguments, facts)
    _note(decision, facts, arguments.stage)
    words = [rendezvous(facts)] if decision.action == "go" else [",".join(decision.exclude)]
    # The batch script knows no more of a job that leaves the rest to others than that it ends.
    print("stop" if decision.action == "leave" else decision.action, decision.exit_code, *words)


def _facts(arguments: argparse.Namespace, environment: Mapping[str, str]) -> JobFacts:
    wish = environment.get("PRETRAIN_REQUEUE") or "requeue"
    policy = POLICIES.get(wish)
    if policy is None:
        raise ConfigError(f"PRETRAIN_REQUEUE={wish} must be one of {', '.join(POLICIES)}")
    faults = environment.get("PRETRAIN_MAX_FAULTS") or "3"
    if not faults.isdecimal():
        raise ConfigError(f"PRETRAIN_MAX_FAULTS={faults} must be a whole number from 0 on")
    return JobFacts(
        job=int(environment["SLURM_JOB_ID"]),
        restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
        nodes=tuple(arguments.nodes.split()),
        excluded=tuple(arguments.excluded.split()),
        up=tuple(arguments.up.split()),
        policy=policy,
        chain=environment.get("PRETRAIN_CHAIN") or None,
        max_faults=int(faults),
        run_dir=Path(environment["PRETRAIN_RUN_DIR"]),
    )


def _decision(arguments: argparse.Namespace, facts: JobFacts) -> Decision:
    events = read_json_lines(facts.run_dir / EVENTS_FILE)
    if arguments.stage == "start":
        return at_start(facts, events)
    if arguments.stage == "preflight":
        outcome = _judged(arguments.code, facts)
        if arguments.asked:
            outcome = Outcome(Preempted.exit_code, "asked to stop before the launch")
        if outcome.code == 0:
            return Decision("go", 0, outcome.message)
    else:
        attempts = read_json_lines(facts.run_dir / ATTEMPTS_FILE)
        outcome = outcome_of(arguments.code, arguments.asked, facts, events, attempts)
    newest = latest_checkpoint(facts.run_dir)
    return decide(outcome, facts, events, newest.step if newest else None)


def _judged(code: int, facts: JobFacts) -> Outcome:
    """What preflight found; tells the job's log."""
    reports = read_reports(reports_folder(facts.run_dir, facts.job, facts.restart))
    if not reports:
        return Outcome(code or RankFault.exit_code, f"preflight did not run (srun ended with {code})")
    verdict = judge(reports, facts.nodes, floors_of(os.environ))
    print(table(reports, facts.nodes, verdict), file=sys.stderr)
    if verdict.wrong is not None:
        return Outcome(ConfigError.exit_code, verdict.wrong)
    if verdict.bad:
        named = "; ".join(f"{node}: {why}" for node, why in verdict.bad.items())
        return Outcome(RankFault.exit_code, named, tuple(verdict.bad) if len(verdict.bad) < len(facts.nodes) else ())
    return Outcome(0, f"{len(facts.nodes)} of {len(facts.nodes)} nodes are fit")


def _note(decision: Decision, facts: JobFacts, stage: str) -> None:
    """Tells the job's log, and the run."""
    print(f"job {facts.job}: {decision.message}", file=sys.stderr, flush=True)
    newest = latest_checkpoint(facts.run_dir)
    generations = [_int(row.get("generation")) for row in read_json_lines(facts.run_dir / ATTEMPTS_FILE)]
    row = {
        "kind": "job",
        "time": round(time.time(), 3),
        "attempt": max(generations, default=0),
        "message": decision.message,
        "job": facts.job,
        "restart": facts.restart,
        "stage": stage,
        "action": decision.action,
        "exit_code": decision.exit_code,
        "checkpoint": newest.step if newest else None,
        "faults": decision.faults,
        "excluded": list(decision.exclude),
        "chain": facts.chain,
        "over": decision.over,
    }
    try:
        append_json_line(facts.run_dir / EVENTS_FILE, redact(row))
    except OSError as error:
        raise StorageError(f"{facts.run_dir}: the run's folder cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
