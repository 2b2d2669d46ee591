"""`pretrain submit --watch`: state and log of submitted jobs until the run has ended, and its exit code.

The queue is asked at moderate intervals, for a controller serves thousands; the log is read more often. A job that is requeued
keeps its number and its log; a chain is watched to its last job.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.slurm_queue import QueuedJob, ended_job, queued_jobs
from launch.submit import Submitted
from pretrain.errors import ConfigError, Interrupted, PretrainError
from pretrain.files import read_json_lines
from pretrain.metrics.jsonl import EVENTS_FILE

QUEUE_INTERVAL_S = 10.0
LOG_INTERVAL_S = 1.0
ENDED_LOOKS = 2
"""Looks at the queue in a row that must miss the jobs: one that is requeued may be missing for a moment."""
_READ_BYTES = 1 << 20


class FollowedFile:
    """A file that grows, or is not there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def news(self) -> bytes:
        """What was written since the last call, at most a MiB of it."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(_READ_BYTES)
        except FileNotFoundError:
            return b""
        self._offset += len(data)
        return data


def watch(submitted: Submitted, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Follows the jobs to their end and returns the exit code of the run.

    Raises Interrupted where Ctrl-C ends the watching (jobs go on) or where the job was cancelled before it began.
    """
    words = " ".join(map(str, submitted.numbers))
    try:
        _follow(submitted, sleep)
    except KeyboardInterrupt:
        raise Interrupted(f"no longer watched; it goes on in the queue: {words}\nstop it: scancel {words}") from None
    return exit_code(submitted)


def _follow(submitted: Submitted, sleep: Callable[[float], None]) -> None:
    logs = [FollowedFile(path) for path in submitted.logs]
    told, missed, trouble, looked = "", 0, "", -1.0
    while missed < ENDED_LOOKS:
        if looked < 0 or time.monotonic() - looked >= QUEUE_INTERVAL_S:
            looked = time.monotonic()
            try:
                mine = [job for job in queued_jobs() if job.number in submitted.numbers]
                missed = 0 if mine else missed + 1
                trouble = ""
                state = _described(mine)
                if state and state != told:
                    _say(state)
                told = state
            except ConfigError:
                raise
            except PretrainError as error:
                if str(error) != trouble:
                    _say(f"{error} (it is asked again)")
                trouble = str(error)
        _copy(logs)
        if missed < ENDED_LOOKS:
            sleep(LOG_INTERVAL_S)
    _copy(logs)


def _described(jobs: Sequence[QueuedJob]) -> str:
    """The state of the job that matters: the one that runs, else the first that waits."""
    if not jobs:
        return ""
    job = min(jobs, key=lambda job: (job.state == "PENDING", job.number))
    more = f", {len(jobs) - 1} more wait" if len(jobs) > 1 else ""
    return f"job {job.number}: {job.state.lower()} {job.about}{more}"


def _copy(logs: Sequence[FollowedFile]) -> None:
    for log in logs:
        while news := log.news():
            sys.stdout.buffer.write(news)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def exit_code(submitted: Submitted) -> int:
    """How the run ended: by its launcher's last word, else by what Slurm knows of the last job.

    Raises Interrupted where the job was cancelled, PretrainError where nobody knows how it ended.
    """
    if submitted.job.task == "train":
        rows = read_json_lines(submitted.job.run_dir / EVENTS_FILE)
        ends = [row for row in rows if row.get("kind") == "launch_ended" and row.get("time", 0) >= submitted.time]
        if ends and isinstance(ends[-1].get("exit_code"), int):
            return ends[-1]["exit_code"]
    found = [end for number in submitted.numbers if (end := ended_job(number)) is not None]
    begun = [end for end in found if not end[0].startswith("CANCELLED")]
    if found and not begun:
        raise Interrupted(f"job {submitted.numbers[0]} was cancelled")
    if not begun:
        raise PretrainError(f"how job {submitted.numbers[-1]} ended is not known to Slurm any more; see its log")
    state, code = begun[-1]
    _say(f"job {submitted.numbers[-1]}: {state.lower()}, exit code {code}")
    return 0 if state == "COMPLETED" else code or PretrainError.exit_code
