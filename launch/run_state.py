"""From the facts of a run's folder and Slurm's answer to one row about the run: a pure function of both and the clock.

A run's end is told by its last event: `launch_ended` of the launcher, `finish` of rank 0 or `job` of a batch script. Without
one it is under way, unless nobody can be at it any more (its job has left the queue, its launcher is gone from this machine:
`failed`), or it has been silent for longer than its steps explain (`stale`: it hangs, or died where this machine cannot see it).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

from launch.job_states import JobState, Queue
from launch.run_facts import Row, RunFacts, number
from pretrain.errors import Interrupted, Preempted
from pretrain.metrics.console import duration, plural

QUIET_START_S = 1800.0
"""Silence that a launch may keep before its first row: importing, loading a checkpoint, waiting for shards."""
QUIET_S = 300.0
"""Silence between rows that is never called stale: a validation, a save."""
QUIET_STEPS = 20
"""The same in steps, of a run whose steps are long; and three times its longest pause so far."""
QUIET_DEATH_S = 30.0
"""Silence after which a launcher that is gone from this machine is believed to be."""
ROWS_OF_SPEED = 20
"""Last rows whose median is the speed."""
JOBS_ASKED = 16
"""Newest jobs of a run that Slurm is asked about."""

_STOPPED = (Preempted.exit_code, Interrupted.exit_code)


@dataclass(frozen=True)
class RunRow:
    """What is shown of a run."""

    run: str
    """Its folder, below the one that was asked about."""
    state: str
    """pending, running, another word of Slurm's, starting, training, done, stopped, failed, stale or not started."""
    detail: str = ""
    """Of the state: why it waits, on how many nodes it runs, how long it is silent."""
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    """Of the last step, without regularization."""
    tokens_per_second: float | None = None
    eta_s: float | None = None
    """Seconds to the last step, of a run under way."""
    restarts: int | None = None
    """Launches beyond the first."""
    event: str = ""
    """The last one, in few words."""
    event_age_s: float | None = None
    checkpoint_step: int | None = None
    job: int | None = None
    """Of Slurm, where the state is its word."""


@dataclass(frozen=True)
class _End:
    """How the newest launch ended."""

    exit_code: int
    time: float

    @property
    def state(self) -> str:
        """The word for it."""
        return "done" if self.exit_code == 0 else "stopped" if self.exit_code in _STOPPED else "failed"


def row_of(facts: RunFacts, name: str, queue: Queue, now: float) -> RunRow:
    """The row of a run.

    Args:
        facts: of its folder.
        name: that it is shown under.
        queue: Slurm's answer to `jobs_of` of all runs.
        now: seconds since the epoch.
    """
    rows = _rows_of_launch(facts)
    last = facts.metrics[-1] if facts.metrics else {}
    step = number(last, "step")
    event = facts.events[-1] if facts.events else {}
    launches = _launches(facts)
    row = RunRow(
        run=name,
        state="",
        step=facts.checkpoint_step if step is None else int(step),
        total_steps=facts.total_steps,
        loss=next((loss for r in reversed(facts.metrics) if (loss := number(r, "train/loss")) is not None), None),
        tokens_per_second=_speed(rows or facts.metrics),
        restarts=launches - 1 if launches else None,
        event=words(event),
        event_age_s=now - time if (time := number(event, "time")) is not None else None,
        checkpoint_step=facts.checkpoint_step,
    )
    row = _with_state(row, facts, queue, now)
    under_way = row.state in ("training", "running") and step is not None
    return replace(row, eta_s=_eta(facts, rows, int(step), now)) if under_way and step is not None else row


def jobs_of(facts: RunFacts) -> list[int]:
    """Slurm jobs whose state matters for the run, oldest first; of a run that is done those submitted afterwards."""
    end, launched = _end(facts), _job_of_launch(facts)
    if _is_done(facts, end):
        return [row["job"] for row in facts.jobs if end is not None and (number(row, "time") or 0.0) > end.time]
    jobs = [*([] if launched is None else [launched]), *(row["job"] for row in facts.jobs)]
    return list(dict.fromkeys(jobs))[-JOBS_ASKED:]


def words(event: Row) -> str:
    """An event in few words."""
    kind, step = str(event.get("kind", "")), number(event, "step")
    told = _one_line(event.get("message") or event.get("cause") or "")
    at = f" {int(step):,}" if step is not None and math.isfinite(step) else ""
    if kind == "finish":
        summary = event.get("summary")
        end = _one_line(summary.get("end", "")) if isinstance(summary, dict) else ""
        return end or ("finished" if event.get("exit_code") == 0 else f"ended with exit code {event.get('exit_code')}")
    if kind in ("launch_ended", "job"):
        return told or ("finished" if event.get("exit_code") == 0 else f"ended with exit code {event.get('exit_code')}")
    if kind == "restart" and not told:
        return f"went on at step{at}"
    short = {"start": "launched", "checkpoint": f"checkpoint{at}", "skipped_step": f"step{at} skipped"}
    return short.get(kind) or f"{kind.replace('_', ' ')}{at}{': ' if kind and told else ''}{told}"


def _with_state(row: RunRow, facts: RunFacts, queue: Queue, now: float) -> RunRow:
    end = _end(facts)
    queued = _queued(facts, queue)
    if queued is not None:
        return _in_queue(row, facts, *queued, now)
    if _is_done(facts, end):
        return replace(row, state="done")
    if end is not None:
        return replace(row, state=end.state)
    signs = [
        time for r in (*facts.metrics[-1:], *facts.events[-1:], *facts.attempts[-1:]) if (time := number(r, "time"))
    ]
    if not signs:
        return _unstarted(row, facts, queue, now)
    silence, job = now - max(signs), _job_of_launch(facts)
    if job is not None and queue.answered and job not in queue.jobs:
        return replace(row, state="failed", event=f"job {job} left the queue without a word", event_age_s=silence)
    if facts.launcher_gone and silence > QUIET_DEATH_S:
        return replace(row, state="failed", event="its launcher is gone without a word", event_age_s=silence)
    if silence > _patience(facts):
        return replace(row, state="stale", detail=duration(silence))
    return replace(row, state="training" if _rows_of_launch(facts) else "starting")


def _in_queue(row: RunRow, facts: RunFacts, job: int, kind: str, queued: JobState, now: float) -> RunRow:
    """The row of a run that has a job in the queue."""
    state, detail = queued.state.lower(), ""
    if queued.state == "PENDING":
        detail = "" if queued.reason in ("None", "") else queued.reason
    elif queued.state == "RUNNING":
        detail = f"on {queued.nodes} {plural(queued.nodes, 'node')}"
        time = number(facts.metrics[-1], "time") if _rows_of_launch(facts) else None
        if kind == "train" and time is not None and now - time > _patience(facts):
            detail += f", silent {duration(now - time)}"
    if kind != "train":
        state = f"{kind} {state}"
    return replace(row, state=state, detail=detail, job=job)


def _unstarted(row: RunRow, facts: RunFacts, queue: Queue, now: float) -> RunRow:
    """The row of a run that no launch has left a sign in."""
    if not facts.jobs or not queue.answered:
        return replace(row, state="not started")
    submitted = number(facts.jobs[-1], "time")
    told = f"job {facts.jobs[-1]['job']} left the queue before it began"
    return replace(row, state="failed", event=told, event_age_s=None if submitted is None else now - submitted)


def _queued(facts: RunFacts, queue: Queue) -> tuple[int, str, JobState] | None:
    """The run's job that counts: one that runs before one that waits, training before other work, the newest."""
    kinds = {row["job"]: str(row.get("kind", "train")) for row in facts.jobs}
    found = [(job, kinds.get(job, "train"), queue.jobs[job]) for job in jobs_of(facts) if job in queue.jobs]
    return max(found, key=lambda entry: (entry[2].state == "RUNNING", entry[1] == "train", entry[0]), default=None)


def _end(facts: RunFacts) -> _End | None:
    """How the newest launch ended; None while it has not, or did not say so."""
    newest = _launches(facts)
    for event in reversed(facts.events):
        kind, code = event.get("kind"), event.get("exit_code")
        if kind in ("start", "restart"):
            return None
        if kind in ("finish", "launch_ended", "job") and isinstance(code, int):
            attempt = number(event, "attempt")
            return None if attempt is not None and attempt < newest else _End(code, number(event, "time") or 0.0)
    return None


def _is_done(facts: RunFacts, end: _End | None) -> bool:
    """Whether the last step is reached and saved."""
    if end is not None and end.exit_code == 0:
        return True
    saved, total = facts.checkpoint_step, facts.total_steps
    return saved is not None and total is not None and saved >= total


def _launches(facts: RunFacts) -> int:
    """Number of the newest launch; 0 where there was none."""
    for row in reversed(facts.attempts):
        found = number(row, "generation") or number(row, "attempt")
        if found is not None and math.isfinite(found):
            return int(found)
    known = [number(row, "attempt") for row in (*facts.metrics[-1:], *facts.events[-1:])]
    return int(max((k for k in known if k is not None and math.isfinite(k)), default=0))


def _job_of_launch(facts: RunFacts) -> int | None:
    """The Slurm job that the newest launch was part of."""
    slurm = facts.attempts[-1].get("slurm") if facts.attempts else None
    job = str(slurm.get("job", slurm.get("job_id"))) if isinstance(slurm, dict) else ""
    return int(job) if job.isdecimal() else None


def _rows_of_launch(facts: RunFacts) -> Sequence[Row]:
    """The last rows of the newest launch."""
    newest = _launches(facts)
    return [row for row in facts.metrics if number(row, "attempt") in (None, float(newest))]


def _pauses(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """(seconds, steps) from row to row."""
    points = [(number(row, "time"), number(row, "step")) for row in rows]
    known = [(time, step) for time, step in points if time is not None and step is not None]
    return [(t - s, n - m) for (s, m), (t, n) in pairwise(known) if n > m and t >= s]


def _patience(facts: RunFacts) -> float:
    """Seconds of silence that the run's steps explain."""
    pauses = _pauses(_rows_of_launch(facts))
    if not pauses:
        return QUIET_START_S
    spent, steps = (sum(part) for part in zip(*pauses, strict=True))
    return max(QUIET_S, QUIET_STEPS * spent / steps, 3 * max(pause for pause, _ in pauses))


def _speed(rows: Sequence[Row]) -> float | None:
    speeds = [speed for row in rows[-ROWS_OF_SPEED:] if (speed := number(row, "perf/tokens_per_second")) is not None]
    return median(speeds) if speeds else None


def _eta(facts: RunFacts, rows: Sequence[Row], step: int, now: float) -> float | None:
    """Seconds to the last step: steps left, at the pace of the last rows with their saves and validations, since the last row."""
    pauses = _pauses(rows)
    if facts.total_steps is None or not rows:
        return None
    if pauses:
        spent, steps = (sum(part) for part in zip(*pauses, strict=True))
        pace = spent / steps
    else:
        pace = number(rows[-1], "perf/step_time_s")
    time = number(rows[-1], "time")
    if pace is None or time is None:
        return None
    return max(0.0, (facts.total_steps - step) * pace - max(0.0, now - time))


def _one_line(text: object) -> str:
    return next(iter(str(text).strip().splitlines()), "")
