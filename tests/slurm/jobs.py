"""What Slurm says about a job, read."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A job in `scontrol show job`."""

    number: int
    state: str
    restarts: int
    exit_code: int
    signal: int
    nodes: str
    """The nodes it runs on, or ran on, as Slurm writes a set: n[1-2]."""
    reason: str
    fields: dict[str, str]
    """All that was said."""


def job_of(line: str) -> Job:
    """Reads one line of `scontrol show job --oneliner`."""
    fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
    exit_code, _, signal = fields["ExitCode"].partition(":")
    return Job(
        number=int(fields["JobId"]),
        state=fields["JobState"],
        restarts=int(fields["Restarts"]),
        exit_code=int(exit_code),
        signal=int(signal),
        nodes=fields.get("NodeList", "").removeprefix("(null)"),
        reason=fields["Reason"],
        fields=fields,
    )


def states_in(jobcomp: str, number: int) -> list[str]:
    """The states that a job's attempts ended in, of the text that jobcomp/filetxt writes."""
    return re.findall(rf"^JobId={number} .*?\bJobState=(\S+)", jobcomp, re.MULTILINE)
