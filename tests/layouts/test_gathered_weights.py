"""ZeRO-3 with no weight kept whole between its uses, as in a large model: what runs a module's products must have called it.

DeepSpeed leaves weights below 100,000 values gathered. Those of these models all are, so that without this the hooks that gather
them would never have anything to do.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest

from pretrain.engine import build
from pretrain.engine.world import start_world
from pretrain.parallel.layout import ParallelLayout
from tests.layouts.cases import Setup
from tests.layouts.conftest import Judge
from tests.layouts.parity import Recording, describe, failed
from tests.layouts.recording import record
from tests.worlds import World


def record_with_nothing_kept(case_name: str, setup: Setup) -> Recording:
    """A recording in which each weight is whole only while its module runs."""
    start_world("cpu")
    original = build.deepspeed_config

    def config(*arguments: Any, **more: Any) -> dict[str, Any]:
        made = original(*arguments, **more)
        never_kept = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
        return {**made, "zero_optimization": {**made["zero_optimization"], **never_kept}}

    with patch.object(build, "deepspeed_config", config):
        return record(case_name, setup)


@pytest.mark.parametrize(
    ("case_name", "more"),
    [
        ("llama-tied", ()),
        ("llama-tied", ("train.recompute=full", "train.loss_tile_tokens=7")),
        ("gpt3-untied", ("train.recompute=selective", "train.loss_tile_tokens=7")),
        ("transformer-tied", ("train.recompute=full", "train.feed_forward_tile_tokens=5")),
        ("palm-untied", ("train.feed_forward_tile_tokens=5",)),
    ],
)
def test_weights_are_gathered_wherever_they_are_used(
    case_name: str, more: tuple[str, ...], world: Callable[[int], World], judge: Judge
) -> None:
    setup = Setup(ParallelLayout(dp=2), zero_stage=3, more=more)
    verdict = judge(case_name, setup, world(2).run(record_with_nothing_kept, case_name, setup))
    assert not failed(verdict), describe(verdict)
