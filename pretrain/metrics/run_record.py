"""What a run folder tells, read for a report; every file may be missing, for the run may have just begun."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.config import RunConfig, read_resolved
from pretrain.files import read_json_lines
from pretrain.metrics.evaluation import Evaluation, read_evaluation
from pretrain.metrics.jsonl import ATTEMPTS_FILE, EVENTS_FILE, SAMPLES_FILE, from_json_number, read_metrics
from pretrain.model.layers import count_parameters

Row = Mapping[str, float]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder tells."""

    config: RunConfig
    rows: Sequence[Row]
    attempts: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    evaluation: Evaluation | None
    num_parameters: int

    @property
    def last_step(self) -> int:
        """Steps done."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def last(self, name: str) -> float | None:
        """The last value of a metric; None where there is none."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)

    def eval(self, name: str) -> float | None:
        """A number of the evaluation, else the last one of a validation in the run, else what the run noted at its end."""
        if self.evaluation is not None and name in self.evaluation.values:
            return self.evaluation.values[name]
        noted = next((e["summary"] for e in reversed(self.events) if name in (e.get("summary") or {})), {})
        return self.last(name) if name not in noted else from_json_number(noted[name])

    def points(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a metric."""
        return [(row["step"], row[name]) for row in self.rows if name in row]


def read_run(run_dir: Path) -> RunRecord:
    """The files of a run folder; those that are not there yet count as empty. Raises ConfigError, StorageError."""
    config = read_resolved(run_dir)
    return RunRecord(
        config=config,
        rows=read_metrics(run_dir),
        attempts=read_json_lines(run_dir / ATTEMPTS_FILE),
        events=read_json_lines(run_dir / EVENTS_FILE),
        samples=read_json_lines(run_dir / SAMPLES_FILE),
        evaluation=read_evaluation(run_dir),
        num_parameters=count_parameters(config.model),
    )
