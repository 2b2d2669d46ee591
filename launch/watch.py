"""`pretrain submit --watch`: state and log of submitted jobs until the run has ended, and its exit code.

The queue is asked at moderate intervals, for a controller serves thousands; the log is read more often. A job that is requeued
keeps its number and its log; a chain is watched to its last job.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.job_states import JobState, ask_queue
from launch.slurm_tools import ended_job, require
from launch.submit import Submitted
from pretrain.errors import Interrupted, PretrainError
from pretrain.files import read_json_lines
from pretrain.metrics.jsonl import EVENTS_FILE

QUEUE_INTERVAL_S = 10.0
LOG_INTERVAL_S = 1.0
MISSED_INTERVAL_S = 2.0
"""Between looks at a queue that the jobs are not in any more."""
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
    require("squeue")
    words = " ".join(map(str, submitted.numbers))
    try:
        _follow(submitted, sleep)
    except KeyboardInterrupt:
        raise Interrupted(f"no longer watched; it goes on in the queue: {words}\nstop it: scancel {words}") from None
    return exit_code(submitted)


def _follow(submitted: Submitted, sleep: Callable[[float], None]) -> None:
    logs = [FollowedFile(path) for path in submitted.logs]
    queue = _Queue(submitted.numbers)
    next_look = time.monotonic()
    while queue.missed < ENDED_LOOKS:
        if time.monotonic() >= next_look:
            queue.look()
            next_look = time.monotonic() + (MISSED_INTERVAL_S if queue.missed else QUEUE_INTERVAL_S)
        _copy(logs)
        if queue.missed < ENDED_LOOKS:
            sleep(LOG_INTERVAL_S)
    _copy(logs)


class _Queue:
    """What was seen of some jobs in the queue; changes are told once."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = numbers
        self._told = ""
        self.missed = 0
        """Looks in a row that found none of them."""

    def look(self) -> None:
        """Asks the queue; one that does not answer is asked again."""
        queue = ask_queue(self._numbers)
        if not queue.answered:
            self._tell(f"{queue.note} (it is asked again)")
            return
        self.missed = 0 if queue.jobs else self.missed + 1
        if queue.jobs:
            self._tell(_described(queue.jobs))

    def _tell(self, text: str) -> None:
        if text != self._told:
            _say(text)
        self._told = text


def _described(jobs: Mapping[int, JobState]) -> str:
    """The state of the job that matters: the one that runs, else the first that waits."""
    number = min(jobs, key=lambda number: (jobs[number].state == "PENDING", number))
    job = jobs[number]
    about = f"({job.reason})" if job.state == "PENDING" else f"on {job.nodes} node(s)"
    more = f", {len(jobs) - 1} more wait" if len(jobs) > 1 else ""
    return f"job {number}: {job.state.lower()} {about}{more}"


def _copy(logs: Sequence[FollowedFile]) -> None:
    for log in logs:
        while news := log.news():
            sys.stdout.buffer.write(news)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def exit_code(submitted: Submitted) -> int:
    """How the run ended. A batch script ends with the run's own code; where none came to its end, or later jobs of a chain had
    nothing to do, the launcher's last word in events.jsonl stands.

    Raises Interrupted where the job was cancelled, PretrainError where nobody knows how it ended.
    """
    last = submitted.numbers[-1]
    ends = [end for number in submitted.numbers if (end := ended_job(number)) is not None]
    begun = [end for end in ends if not end[0].startswith("CANCELLED")]
    if submitted.job.chain is None and begun and begun[-1][0] in ("COMPLETED", "FAILED"):
        return begun[-1][1]
    launched = _launchers_word(submitted)
    if launched is not None:
        return launched
    if ends and not begun:
        raise Interrupted(f"job {last} was cancelled")
    if not begun:
        raise PretrainError(f"how job {last} ended is not known to Slurm any more; see its log")
    state, code = begun[-1]
    _say(f"job {last}: {state.lower()}, exit code {code}")
    return code if state == "COMPLETED" else code or PretrainError.exit_code


def _launchers_word(submitted: Submitted) -> int | None:
    """The exit code of the last launch since the submission; None where there was none, or it left no word."""
    rows = read_json_lines(submitted.job.run_dir / EVENTS_FILE) if submitted.job.task == "train" else []
    codes = [
        row.get("exit_code") for row in rows if row.get("kind") == "launch_ended" and row["time"] >= submitted.time
    ]
    return codes[-1] if codes else None
