"""Which launch of a run may commit, and what an earlier launch committed in time. No torch: the launcher reads it too.

Locks do not reach everywhere. A machine that was cut off goes on training until its link heals, and a process may be paused at
any instruction, between a check and what it allows too. So launches are fenced by their numbers, the generations:

1. A launcher claims the next number: it makes the folder `logs/gen-G`, in which of any two that try one succeeds, on NFS too.
2. It looks which checkpoints are committed.
3. Its row of attempts.jsonl notes of each earlier generation the newest step that it saw (`committed`).

A checkpoint counts if every later launch saw it. What a stale writer commits after step 2 is in no row and counts for nobody,
whenever it was paused. A generation's steps rise, so one number says which of its checkpoints were there. A writer looks for
claims before its marker, to stop early, and again after it: where there is none then, any later launch will see the marker. So
a save that returned counts, and may delete what it makes superfluous.

Not taken: a lease that is renewed (a pause outlasts every lease); asking before the marker alone (the pause comes after the
question); comparing with the newest step at registration (a launch that fell back to an older checkpoint commits steps below it).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import RankFault
from pretrain.files import read_json_lines
from pretrain.guard.fault_file import logs_folder

ATTEMPTS = "attempts.jsonl"

_CLAIM = re.compile(r"gen-([1-9]\d*)")


@dataclass(frozen=True)
class Fence:
    """What attempts.jsonl says of a run's launches."""

    registered: frozenset[int]
    """Generations that have a row."""
    seen: tuple[tuple[int, Mapping[int, int]], ...]
    """Of each launch that noted it, its generation, and the newest committed step that it saw of each earlier one."""

    def lets_pass(self, step: int, generation: int) -> bool:
        """Whether a checkpoint that a generation committed counts: the launch is registered, and all later ones saw it."""
        return generation in self.registered and not self.was_late(step, generation)

    def was_late(self, step: int, generation: int) -> bool:
        """Whether a checkpoint was committed after a later launch had begun."""
        later = (steps for launch, steps in self.seen if launch > generation)
        return any(step > steps.get(generation, -1) for steps in later)


def read_fence(run_dir: Path) -> Fence:
    """The fence of a run as it stands."""
    return fence_of(read_json_lines(run_dir / ATTEMPTS))


def fence_of(attempts: Sequence[Mapping[str, Any]]) -> Fence:
    """The fence that rows of attempts.jsonl make. Those of older versions, which noted no steps, fence nothing out."""
    rows = [(number_of(row), row) for row in attempts]
    seen = tuple(
        (
            number,
            {
                int(generation): step
                for generation, step in row["committed"].items()
                if generation.isdecimal() and isinstance(step, int)
            },
        )
        for number, row in rows
        if number is not None and isinstance(row.get("committed"), dict)
    )
    return Fence(frozenset(number for number, _ in rows if number is not None), seen)


def number_of(row: Mapping[str, Any]) -> int | None:
    """Generation of the launch that a row of attempts.jsonl is of; a launch is an attempt, under either name."""
    number = row.get("attempt", row.get("generation"))
    return number if isinstance(number, int) else None


def newest_launch(run_dir: Path) -> int:
    """The highest generation that was claimed or registered; 0 where there is none."""
    claims = (_CLAIM.fullmatch(folder.name) for folder in logs_folder(run_dir, 1).parent.glob("gen-*"))
    return max([*read_fence(run_dir).registered, *(int(claim[1]) for claim in claims if claim)], default=0)


def check_newest(run_dir: Path, generation: int) -> None:
    """Raises RankFault where a later launch of the run has begun: nothing that this one saves would count."""
    newest = newest_launch(run_dir)
    if newest <= generation:
        return
    hosts = [row.get("hosts") for row in read_json_lines(run_dir / ATTEMPTS) if number_of(row) == newest]
    where = f" on {hosts[-1][0]}" if hosts and hosts[-1] else ""
    raise RankFault(f"launch {newest} of this run has begun{where}; this one ({generation}) stops without saving")
