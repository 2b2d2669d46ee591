"""Where jobs stand in Slurm's queue: one `squeue` for all of them, bounded in time.

Jobs that have left the queue are missing from the answer: squeue forgets them some minutes after their end, and `sacct`, which
does not, needs a database that many sites lack. What became of them is told by the run's own files.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

TIMEOUT_S = 10.0

_FIELDS = "%A|%F|%T|%D|%r"
"""Number, number of the whole array, state, nodes, reason."""
_LEFT = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE")
_LEFT_TOO = ("OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL")


@dataclass(frozen=True)
class JobState:
    """A job that waits or runs."""

    state: str
    """As Slurm spells it: PENDING, RUNNING, COMPLETING, ..."""
    nodes: int
    """That it has, or asks for."""
    reason: str
    """Why it waits; `None` where Slurm names none."""


@dataclass(frozen=True)
class Queue:
    """Slurm's answer."""

    jobs: Mapping[int, JobState] = field(default_factory=dict)
    """Those asked about that are in the queue."""
    answered: bool = True
    """False: nothing is known of any job."""
    note: str | None = None
    """Why it did not answer."""


def ask_queue(jobs: Sequence[int], *, command: str = "squeue", timeout_s: float = TIMEOUT_S) -> Queue:
    """Where the jobs stand now. Slurm that is not there or does not answer is told in the note; never raises for it."""
    if not jobs:
        return Queue()
    program = shutil.which(command)
    if program is None:
        return Queue(
            answered=False, note=f"there is no {command} on this machine: whether jobs still wait is not known"
        )
    asked = [program, "--noheader", f"--format={_FIELDS}", f"--jobs={','.join(map(str, jobs))}"]
    try:
        done = subprocess.run(
            asked, capture_output=True, text=True, timeout=timeout_s, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired:
        return Queue(
            answered=False, note=f"Slurm did not answer within {timeout_s:g} s: its jobs' states are not known"
        )
    except OSError as error:
        return Queue(answered=False, note=f"{command} cannot be started ({error.strerror})")
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        told = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Queue(answered=False, note=f"Slurm did not answer: {told}")
    return Queue(parse_states(done.stdout))


def parse_states(text: str) -> dict[int, JobState]:
    """The jobs of squeue's answer that have not ended; lines that are something else are left out.

    A job of an array is found under its own number and under the array's, there before one that waits where it runs.
    """
    found: dict[int, JobState] = {}
    for line in text.splitlines():
        parts = line.strip().split("|", 4)
        if len(parts) < 5 or not (parts[0] + parts[1] + parts[3]).isdecimal() or parts[2] in (*_LEFT, *_LEFT_TOO):
            continue
        state = JobState(parts[2], int(parts[3]), parts[4])
        for number in (int(parts[0]), int(parts[1])):
            if number not in found or state.state == "RUNNING":
                found[number] = state
    return found
