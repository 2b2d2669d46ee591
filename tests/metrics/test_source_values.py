"""Metrics by source of the data: told where there are several, and their parts add up to the whole."""

import pytest
import torch

from pretrain.engine.protocol import EvaluationResult
from pretrain.metrics.step_values import source_losses, source_values, training_losses


def test_tokens_and_epochs_are_told_by_source_where_there_are_several() -> None:
    assert source_values({"main": 7}, {"main": 0.5}, 16) == {}
    # A source that still grows has no size, and so no epochs.
    assert source_values({"a": 7, "b": 2}, {"a": 0.5}, 16) == {
        "data/tokens/a": 112.0,
        "data/tokens/b": 32.0,
        "data/epochs/a": 0.5,
    }


def test_losses_of_sources_add_up_to_that_of_the_set() -> None:
    parts = {
        "a": EvaluationResult(torch.tensor([2.0, 4.0], dtype=torch.float64), torch.tensor([1, 1])),
        "b": EvaluationResult(torch.tensor([9.0, 1.0], dtype=torch.float64), torch.tensor([3, 1])),
    }
    assert source_losses(parts) == {"eval/loss/a": 3.0, "eval/loss/b": 2.5}
    assert EvaluationResult.sum([*parts.values()]).loss == pytest.approx(16 / 6)
    assert source_losses({"main": parts["a"]}) == {}


def test_training_losses_are_told_of_the_sources_that_the_batch_has() -> None:
    assert training_losses((2.0, None, 3.0), ("a", "b", "c")) == {"train/loss/a": 2.0, "train/loss/c": 3.0}
    assert training_losses((), ("main",)) == {}
