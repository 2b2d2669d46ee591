"""What a job of slurm/prepare.sbatch does after its preparation has ended, and what it knows of itself.

Finished tasks are kept, so a preparation that was preempted, or that had a fault, goes on where it was: the job is queued again.
Faults are counted, by rows of kind `preparation` in the run's events.jsonl, until another task is finished; errors that would
come again end the job. (Of training, `launch.slurm_job` decides.)
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.cli import build_parser
from pretrain.config import RunConfig, load_config
from pretrain.errors import CheckpointError, ConfigError, DataError, Interrupted, Preempted, RankFault, StorageError
from pretrain.files import append_json_line, read_json_lines
from pretrain.metrics.jsonl import EVENTS_FILE

_FINAL = {error.exit_code for error in (ConfigError, DataError, CheckpointError, StorageError, Interrupted)}
"""Exit codes that the same command would end with again."""


@dataclass(frozen=True)
class Decision:
    """What the job does after the preparation has ended."""

    action: Literal["requeue", "stop"]
    exit_code: int
    message: str
    faults: int = 0
    """In a row, without a newly finished task, this one included."""


def decide(code: int, asked: bool, policy: str, faults: int, max_faults: int) -> Decision:
    """What to do after the driver has ended.

    Args:
        code: of the driver, or what srun made of it.
        asked: the job was told to give its nodes back.
        policy: PRETRAIN_REQUEUE.
        faults: in a row before this one, without a newly finished task.
        max_faults: how many of them a job may have.
    """
    if code == 0 or code in _FINAL:
        return Decision("stop", code, "done" if code == 0 else "stops: it would end the same way again")
    if asked or code == Preempted.exit_code:
        return _again(Decision("requeue", Preempted.exit_code, "preempted"), policy)
    told = f"fault {faults + 1} of {max_faults} without a newly finished task (exit code {code})"
    if faults + 1 > max_faults:
        return Decision("stop", RankFault.exit_code, f"given up, {told}", faults + 1)
    return _again(Decision("requeue", RankFault.exit_code, told, faults + 1), policy)


def _again(decision: Decision, policy: str) -> Decision:
    if policy == "requeue":
        return Decision("requeue", decision.exit_code, f"to be queued again: {decision.message}", decision.faults)
    return Decision("stop", decision.exit_code, f"ends, to be submitted again: {decision.message}", decision.faults)


def ended(code: int, asked: bool, arguments: Sequence[str]) -> int:
    """Prints what the job does next, and notes why. Raises nothing: a job that cannot note it stops with the driver's code."""
    policy, limit = os.environ.get("PRETRAIN_REQUEUE") or "requeue", os.environ.get("PRETRAIN_MAX_FAULTS") or "3"
    try:
        events, finished = _events_and_finished(arguments)
        before = [row for row in read_json_lines(events) if row.get("kind") == "preparation"][-1:]
        row = before[0] if before and before[0].get("finished") == finished else {}
        decision = decide(code, asked, policy, int(row.get("faults", 0)), int(limit))
        job, restart = job_and_restart()
        note = {"exit_code": decision.exit_code, "faults": decision.faults, "finished": finished}
        append_json_line(
            events,
            {
                "kind": "preparation",
                "message": decision.message,
                **note,
                "job": job,
                "restart": restart,
                "time": time.time(),
            },
        )
    except (ConfigError, DataError, StorageError, OSError, ValueError) as error:
        decision = Decision("stop", code, f"stops, for what comes next cannot be noted: {error}")
    print(f"job {os.environ.get('SLURM_JOB_ID')}: {decision.message}", file=sys.stderr, flush=True)
    print(decision.action, decision.exit_code)
    return 0


def _events_and_finished(arguments: Sequence[str]) -> tuple[Path, int]:
    """The file of the run's events, and how many tasks of its preparation are finished."""
    from data_prep.folder import RECORDS_NAME

    _, config = understood(arguments)
    run_dir = Path(os.environ.get("PRETRAIN_RUN_DIR") or config.run_dir)
    return run_dir / EVENTS_FILE, sum(1 for _ in (config.data.folder / RECORDS_NAME).glob("*/*.npz"))


def job_and_restart() -> tuple[int, int]:
    """(number, restarts) of the Slurm job. Raises ConfigError outside of one."""
    with suppress(KeyError, ValueError):
        return int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    raise ConfigError("SLURM_JOB_ID is not set: this runs inside a job of slurm/prepare.sbatch")


def understood(arguments: Sequence[str]) -> tuple[argparse.Namespace, RunConfig]:
    """The command line of `pretrain prepare`, and its config. Raises ConfigError."""
    chosen = build_parser().parse_args(["prepare", *arguments])
    return chosen, load_config(chosen.config, chosen.overrides)
