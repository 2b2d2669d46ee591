"""Model axes of a world of four ranks, made once a rank."""

from functools import cache

import torch

from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import Axis, ProcessMesh

SINGLE = ProcessMesh.single().model


@cache
def model_axis(tp: int) -> Axis:
    """The model axis of size `tp`; with two there are two groups beside each other."""
    return ProcessMesh.create(ParallelLayout(dp=4 // tp, tp=tp), torch.device("cpu")).model


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference as a share of the largest magnitude of `b`; the shapes must agree."""
    assert a.shape == b.shape, (a.shape, b.shape)
    if b.numel() == 0:
        return 0.0
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
