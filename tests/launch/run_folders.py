"""Folders of runs as training leaves them, written by hand: what status tells of them is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NOW = 1_800_000_000.0
"""The clock of the tests, seconds since the epoch."""


def write_run(
    folder: Path,
    *,
    total: int | None = 1000,
    launches: int = 1,
    steps: range = range(0),
    step_s: float = 2.0,
    last_row_age_s: float = 1.0,
    launch_age_s: float = 4000.0,
    events: Sequence[Mapping[str, Any]] = (),
    jobs: Sequence[int] = (),
    slurm_job: int | None = None,
    saved: int | None = None,
) -> Path:
    """A run; its metrics rows are of the newest launch, `step_s` apart."""
    folder.mkdir(parents=True)
    if total is not None:
        (folder / "config.yaml").write_text(f"name: {folder.name}\ntrain:\n  steps: {total}\n")
    slurm = {"slurm": {"job": slurm_job, "restart": 0}} if slurm_job is not None else {}
    rows = [{"generation": g + 1, "attempt": g + 1, "time": NOW - launch_age_s + g, **slurm} for g in range(launches)]
    _write(folder / "attempts.jsonl", rows)
    began = NOW - last_row_age_s - step_s * (len(steps) - 1)
    metrics = [
        {
            "step": step,
            "attempt": launches,
            "time": began + index * step_s,
            "train/loss": 5 - step / 1000,
            "perf/tokens_per_second": 12_300.0,
        }
        for index, step in enumerate(steps)
    ]
    _write(folder / "metrics.jsonl", metrics)
    _write(folder / "events.jsonl", [{"attempt": launches, "time": NOW - 60, **event} for event in events])
    _write(folder / "jobs.jsonl", [{"time": NOW - 5000, "job": job, "kind": "train"} for job in jobs])
    if saved is not None:
        committed = folder / "checkpoints" / f"step-{saved:08d}" / "gen-1" / "COMMITTED"
        committed.parent.mkdir(parents=True)
        committed.touch()
    return folder


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
