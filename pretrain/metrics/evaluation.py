"""Evaluation: what a validation says of a model, kept in the run folder as evaluation.json for the report and for scripts."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pretrain.engine.protocol import EvaluationResult
from pretrain.errors import StorageError
from pretrain.files import write_atomically
from pretrain.metrics.jsonl import from_json_number, to_json
from pretrain.metrics.step_values import evaluation_values

EVALUATION_FILE = "evaluation.json"


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one checkpoint on the validation set."""

    step: int
    values: Mapping[str, float]
    """By names such as `eval/loss`; losses in nats a target."""
    loss_by_position: tuple[float, ...]
    """(S,) mean loss at each position of a sequence; not a number where no target stands."""

    def with_values(self, values: Mapping[str, float]) -> "Evaluation":
        """The same with further numbers."""
        return replace(self, values={**self.values, **values})


def evaluation_of(result: EvaluationResult, *, step: int, vocab_size: int, target_bytes: int) -> Evaluation:
    """The numbers that follow from summed losses.

    Args:
        result: sums over the validation set.
        step: of the model.
        vocab_size: V; a model that knows nothing has a loss of ln V.
        target_bytes: bytes of text that all targets stand for.
    """
    values = evaluation_values(result, target_bytes)
    values["eval/targets"] = float(result.targets_by_position.sum())
    values["eval/uniform_loss"] = math.log(vocab_size)
    values["eval/nats_below_uniform"] = math.log(vocab_size) - result.loss
    sums, counts = result.loss_by_position.tolist(), result.targets_by_position.tolist()
    means = tuple(total / count if count else math.nan for total, count in zip(sums, counts, strict=True))
    return Evaluation(step, values, means)


def write_evaluation(run_dir: Path, evaluation: Evaluation) -> Path:
    """Keeps an evaluation in the run folder. Raises StorageError."""
    path = run_dir / EVALUATION_FILE
    content = {
        "step": evaluation.step,
        "values": to_json(evaluation.values),
        "loss_by_position": to_json(evaluation.loss_by_position),
    }
    write_atomically(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def read_evaluation(run_dir: Path) -> Evaluation | None:
    """The evaluation that a run folder keeps; None where there is none. Raises StorageError where it is damaged."""
    path = run_dir / EVALUATION_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        values = {name: from_json_number(value) for name, value in content["values"].items()}
        return Evaluation(
            content["step"], values, tuple(from_json_number(value) for value in content["loss_by_position"])
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{path}: damaged ({error}); delete it and run `pretrain evaluate` again") from None
