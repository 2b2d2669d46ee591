"""What a run says of how its ranks share the work."""

import pytest

from pretrain.config import load_config
from pretrain.metrics.run_logs import _sharing
from pretrain.resolve import Machine, World, resolve

GRID = ["layout.tp=2", "layout.pp=2", "layout.dp=1"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["layout.pp=2"], []),
        (GRID, ["sequence parallelism enabled"]),
        # 255 positions do not divide by tp: `auto` leaves the stream whole, and says so.
        (
            [*GRID, "data.sequence_length=255", "train.global_batch_tokens=2040", "train.micro_batch_sequences=1"],
            ["sequence parallelism disabled"],
        ),
        (
            ["layout.pp=2", "layout.pipeline_schedule=zb-h1", "train.recompute=full", "train.loss_tile_tokens=512"],
            ["zb-h1 schedule", "full recomputation", "loss in tiles of 512 tokens"],
        ),
    ],
)
def test_what_auto_came_to_and_what_trades_memory_is_told(changes: list[str], told: list[str]) -> None:
    config = resolve(load_config("quickstart.yaml", changes), Machine(cores=4), World(), vocab_size=300)
    assert _sharing(config) == told
