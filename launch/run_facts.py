"""What the folder of a run tells from outside, read in milliseconds while the run writes: the ends of its files.

A metrics file grows to gigabytes, so it is read from its end; a line that is being written is left out, a damaged file or one
that cannot be read becomes a note, never an error: a look at hundreds of runs must not end at one of them. Nothing is locked and
nothing is checked against the settings of this version, for runs of others are looked at, too. No torch.

Alternative not taken: `pretrain.metrics.run_record`, which reads every file whole and refuses a run of another version.
"""

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from launch.lock import LOCK_NAME
from pretrain.checkpoint.fence import fence_of, number_of
from pretrain.metrics.jsonl import ATTEMPTS_FILE, EVENTS_FILE, METRICS_FILE, from_json_number

CONFIG_FILE = "config.yaml"
SUBMITTED_FILE = "submitted.yaml"
JOBS_FILE = "jobs.jsonl"
CHECKPOINTS, MARKER = "checkpoints", "COMMITTED"
"""As `pretrain.checkpoint.format` has them, whose import would take longer than a look at a hundred runs."""
MARKS_OF_A_RUN = frozenset({CONFIG_FILE, SUBMITTED_FILE, JOBS_FILE, METRICS_FILE, EVENTS_FILE, ATTEMPTS_FILE})
"""A folder that holds one of these is a run's."""

TAIL_BYTES = 64 << 10
"""Read of the end of a .jsonl file: some 60 steps, or all launches of most runs."""
LONGEST_TAIL_BYTES = 4 << 20
"""Read where the first piece holds no whole line, as a row with hundreds of sources would need."""
MAX_DEPTH = 4
"""Folders below the one that is asked about in which runs are looked for."""

_STEP_FOLDER = re.compile(r"step-(\d{8,})")
_HOLDER = re.compile(r"process (\d+) on ([^\s,]+)")
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where the library is there

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunFacts:
    """The ends of the files of a run."""

    folder: Path
    total_steps: int | None
    """Of the resolved config, or of the submitted one where that is newer."""
    metrics: Sequence[Row]
    """The last rows, oldest first; so all below."""
    events: Sequence[Row]
    attempts: Sequence[Row]
    jobs: Sequence[Row]
    checkpoint_step: int | None
    """Newest committed one."""
    launcher_gone: bool
    """Whether the process that last held the run was on this machine and is no more. Of another machine nothing is known."""
    notes: tuple[str, ...]
    """What could not be read, by the names of the files."""


def find_runs(folder: Path) -> tuple[list[Path], list[Path]]:
    """The runs at or below a folder, and the folders directly below it that hold none. Raises OSError for the folder itself.

    Links are followed; a run that is reached in several ways is given once.
    """
    if _is_run(folder):
        return [folder], []
    runs: list[Path] = []
    foreign: list[Path] = []
    seen = {_identity(folder)}
    for child in _folders(folder):
        known = _identity(child) in seen
        below = list(_runs_below(child, MAX_DEPTH - 1, seen))
        runs += below
        if not below and not known:
            foreign.append(child)
    return runs, foreign


def read_facts(run_dir: Path) -> RunFacts:
    """What a run's folder tells now."""
    notes: list[str] = []
    attempts = tail_rows(run_dir / ATTEMPTS_FILE, notes)
    metrics = [row for row in tail_rows(run_dir / METRICS_FILE, notes) if _is_of_a_step(row)]
    return RunFacts(
        folder=run_dir,
        total_steps=_total_steps(run_dir, notes),
        metrics=[row for row in metrics if not _is_overtaken(row, attempts)],
        events=tail_rows(run_dir / EVENTS_FILE, notes),
        attempts=attempts,
        jobs=[row for row in tail_rows(run_dir / JOBS_FILE, notes) if isinstance(row.get("job"), int)],
        checkpoint_step=_checkpoint_step(run_dir, attempts),
        launcher_gone=_launcher_is_gone(run_dir),
        notes=tuple(notes),
    )


def number(row: Row, name: str) -> float | None:
    """A number of a row; None where it is missing or something else."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return from_json_number(value)
    except (KeyError, OverflowError):
        return None


def _is_of_a_step(row: Row) -> bool:
    step = number(row, "step")
    return step is not None and math.isfinite(step)


def _is_overtaken(row: Row, attempts: Sequence[Row]) -> bool:
    """Whether a later launch went on from a checkpoint before the row's step; see `pretrain.metrics.jsonl.read_metrics`."""
    step, attempt = number(row, "step") or 0.0, number(row, "attempt") or math.inf
    for launch in attempts:
        if "checkpoint" in launch and (number_of(launch) or 0) > attempt:
            checkpoint = launch["checkpoint"]
            begin = number(checkpoint, "step") if isinstance(checkpoint, Mapping) else None
            if step > (begin or 0.0):
                return True
    return False


def tail_rows(path: Path, notes: list[str]) -> list[Row]:
    """The last objects of a .jsonl file, oldest first; none where it is missing. What is wrong with it is added to the notes."""
    size = TAIL_BYTES
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            while True:
                start = max(0, end - size)
                file.seek(start)
                rows, damaged = _rows(file.read(end - start), start == 0)
                if rows or start == 0 or size >= LONGEST_TAIL_BYTES:
                    break
                size *= 8
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{path.name}: cannot be read ({error.strerror})")
        return []
    if damaged:
        notes.append(f"{path.name}: {damaged} of its last lines {'is' if damaged == 1 else 'are'} damaged and left out")
    return rows


def _rows(tail: bytes, whole: bool) -> tuple[list[Row], int]:
    """Objects of the end of a file and the number of damaged lines; a last line without an end is still being written."""
    lines = tail.split(b"\n")[:-1]
    rows, damaged = [], 0
    for line in lines if whole else lines[1:]:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            damaged += 1
    return rows, damaged


def _total_steps(run_dir: Path, notes: list[str]) -> int | None:
    for path in sorted((run_dir / CONFIG_FILE, run_dir / SUBMITTED_FILE), key=_modified, reverse=True):
        try:
            document = yaml.load(path.read_text(encoding="utf-8"), _YAML)
            steps = document["train"]["steps"]
            if isinstance(steps, int) and steps > 0:
                return steps
        except FileNotFoundError:
            continue
        except OSError as error:
            notes.append(f"{path.name}: cannot be read ({error.strerror})")
            continue
        except (ValueError, yaml.YAMLError, LookupError, TypeError):
            pass
        notes.append(f"{path.name}: train.steps cannot be read from it")
    return None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _checkpoint_step(run_dir: Path, attempts: Sequence[Row]) -> int | None:
    """Of the newest checkpoint that is committed and counts; its content is for `pretrain checkpoint verify` to judge."""
    try:
        folders = sorted((run_dir / CHECKPOINTS).iterdir(), reverse=True)
    except OSError:
        return None
    fence = fence_of(attempts)
    for folder in folders:
        step = _STEP_FOLDER.fullmatch(folder.name)
        names = [marker.parent.name for marker in folder.glob(f"gen-*/{MARKER}")] if step else []
        generations = [int(name[4:]) for name in names if name[4:].isdecimal()]
        if step and any(not fence.was_late(int(step[1]), generation) for generation in generations):
            return int(step[1])
    return None


def _launcher_is_gone(run_dir: Path) -> bool:
    try:
        holder = _HOLDER.match((run_dir / LOCK_NAME).read_bytes()[:200].decode(errors="replace"))
    except OSError:
        return False
    if holder is None or holder[2] != platform.node():
        return False
    return Path("/proc/self").exists() and not Path("/proc", holder[1]).exists()


def _is_run(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name in MARKS_OF_A_RUN for entry in entries)


def _folders(folder: Path) -> list[Path]:
    """Folders in a folder, links last."""
    with os.scandir(folder) as entries:
        found = [(entry.is_symlink(), entry.path) for entry in entries if entry.name[0] != "." and entry.is_dir()]
    return [Path(path) for _, path in sorted(found)]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _runs_below(folder: Path, depth: int, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Runs at or below a folder that were not seen yet; what cannot be listed holds none."""
    try:
        if _identity(folder) in seen:
            return
        seen.add(_identity(folder))
        if _is_run(folder):
            yield folder
            return
        children = _folders(folder) if depth > 0 else []
    except OSError:
        return
    for child in children:
        yield from _runs_below(child, depth - 1, seen)
