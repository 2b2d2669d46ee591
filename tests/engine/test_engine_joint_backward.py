"""A stage that passes on the stream and the memory goes backward through its layers once a micro-batch."""

from typing import Any, cast
from unittest.mock import patch

import torch.distributed as dist
from torch import nn

from pretrain.engine.base import EngineBase
from pretrain.engine.world import start_world
from pretrain.parallel.layout import ParallelLayout
from tests.layouts.cases import CASES, Setup, micro_batches
from tests.layouts.recording import start_engine
from tests.worlds import World

CASE = "transformer-tied"
SETUP = Setup(ParallelLayout(pp=2))


def backward_passes_of_the_first_layer() -> tuple[int, int, int]:
    """On a rank: passes with DeepSpeed's own backward, passes with ours, micro-batches."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    start_world("cpu")
    # All but the last decoder layer and the head on the first stage: its two floating-point outputs share the encoder.
    with patch("pretrain.engine.pipeline.balance", lambda costs, stages, _: [0, len(costs) - 2, len(costs)]):
        engine = cast(EngineBase, start_engine(CASE, SETUP))
    counts = [0]
    if engine.mesh.is_first_stage:
        attention = next(m for m in engine._engine.module.modules() if type(m).__name__ == "RowParallelLinear")
        cast(nn.Module, attention).register_full_backward_hook(lambda *_: counts.__setitem__(0, counts[0] + 1))
    batches = micro_batches(CASES[CASE], 0, SETUP.layout, engine.mesh.data.rank)
    ours: Any = type(engine._engine)
    passes = []
    for kind in (PipelineEngine, ours):
        engine._engine.__class__ = kind
        counts[0] = 0
        engine.train_step(batches)
        passes.append(counts[0])
    dist.barrier()
    return passes[0], passes[1], len(batches)


def test_the_encoder_is_walked_once_a_micro_batch_and_twice_by_deepspeed() -> None:
    with World(2) as world:
        theirs, ours, batches = world.run(backward_passes_of_the_first_layer)[0]
    assert ours == batches
    assert theirs == 2 * batches
