"""Whole logits never exist under tensor parallelism or a tiled loss: the largest storage of a whole training step is watched.

The vocabulary dominates this model: logits of a micro-batch are four times as large as the table, and anything else is smaller.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from pretrain.config import RunConfig
from pretrain.engine import build
from pretrain.model.activation_bytes import MicroBatchSize, logits_bytes
from pretrain.parallel.layout import ParallelLayout
from pretrain.parity import recording
from tests.layouts.cases import CASES, LENGTH, MICRO_SEQUENCES, TOTAL_STEPS, Setup, micro_batches
from tests.model.live_storages import LiveStorages
from tests.worlds import World

_VOCABULARY, _TILE = 4096, 12
_TILED = f"train.loss_tile_tokens={_TILE}"


def _config(case_name: str, setup: Setup) -> RunConfig:
    config = CASES[case_name].config(setup)
    size = {"vocab_size": _VOCABULARY, "d_model": 8, "num_heads": 2, "num_kv_heads": 2, "d_ff": 16}
    return config.model_copy(update={"model": config.model.model_copy(update=size)})


def largest_of_a_step(case_name: str, setup: Setup) -> tuple[int, int]:
    """Bytes of the largest storage that a rank makes in a training step, and in an evaluation."""
    original = build.deepspeed_config

    def config(*arguments: Any, **more: Any) -> dict[str, Any]:
        # DeepSpeed's buckets are of one size, 200 MB, whatever the model is.
        made = original(*arguments, **more)
        return {**made, "zero_optimization": {**made["zero_optimization"], "reduce_bucket_size": 20_000}}

    with patch.object(build, "deepspeed_config", config):
        engine = recording.start(_config(case_name, setup), TOTAL_STEPS)
    batches = micro_batches(CASES[case_name], 0, setup.layout, engine.mesh.data.rank)
    engine.train_step(batches)  # buffers that stay are made in the first step
    with LiveStorages() as training:
        engine.train_step(batches)
    with LiveStorages() as evaluation:
        engine.evaluate(batches)
    return training.largest, evaluation.largest


def _logits(case_name: str, tp: int = 1, tile: int | None = None) -> int:
    size = MicroBatchSize(MICRO_SEQUENCES, LENGTH, tp=tp, value_bytes=4)
    return logits_bytes(_config(case_name, Setup(ParallelLayout())).model, size, tile)


@pytest.mark.parametrize("case_name", ["llama-tied", "gpt3-untied"])
def test_one_rank_without_tiles_makes_whole_logits(case_name: str, world: Callable[[int], World]) -> None:
    """The control: without either guard the watch sees them."""
    ((training, evaluation),) = world(1).run(largest_of_a_step, case_name, Setup(ParallelLayout()))
    assert training == evaluation == _logits(case_name) == 4 * MICRO_SEQUENCES * LENGTH * _VOCABULARY


@pytest.mark.parametrize(
    ("case_name", "setup"),
    [
        ("llama-tied", Setup(ParallelLayout(tp=2))),
        ("gpt3-untied", Setup(ParallelLayout(tp=2, pp=2))),
    ],
)
def test_a_tensor_rank_makes_its_columns_alone(case_name: str, setup: Setup, world: Callable[[int], World]) -> None:
    largest = world(setup.layout.world_size).run(largest_of_a_step, case_name, setup)
    assert max(max(rank) for rank in largest) == _logits(case_name, tp=2)


@pytest.mark.parametrize(
    ("case_name", "setup"),
    [
        ("llama-tied", Setup(ParallelLayout(), more=(_TILED,))),
        ("gpt3-tied", Setup(ParallelLayout(), 0, (_TILED,))),
        ("llama-untied", Setup(ParallelLayout(dp=2), 3, (_TILED,))),
        ("llama-tied", Setup(ParallelLayout(tp=2), more=(_TILED,))),
        ("gpt3-tied", Setup(ParallelLayout(tp=2, pp=2), more=(_TILED,))),
    ],
)
def test_tiles_bound_logits_whatever_the_batch(case_name: str, setup: Setup, world: Callable[[int], World]) -> None:
    """Logits of a tile, or else the table's gradient in a flat buffer, are the largest of all."""
    tile = _logits(case_name, setup.layout.tp, _TILE)
    for training, evaluation in world(setup.layout.world_size).run(largest_of_a_step, case_name, setup):
        assert training <= tile < _logits(case_name, setup.layout.tp)
        assert evaluation <= tile
