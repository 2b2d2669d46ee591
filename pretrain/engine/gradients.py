"""`guard_and_clip`: norm, skip and clipping of gradients that lie whole in `parameter.grad`.

DeepSpeed's ZeRO optimizers do this themselves, and rightly once sharded parameters are marked. At ZeRO-0 it
reports no norm and steps on whatever gradients there are; this takes its place there.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pretrain.parallel.collectives import all_reduce
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import shard_of


@torch.no_grad()
def global_norm(parameters: Sequence[nn.Parameter], mesh: ProcessMesh) -> float:
    """2-norm of the gradient of the global model: what is split over model or expert ranks counts on each, the rest once."""
    everywhere, spread = torch.zeros(2, dtype=torch.float64, device=mesh.device).unbind()
    for parameter in parameters:
        if parameter.grad is not None and (mesh.model.rank == 0 or getattr(parameter, "tensor_model_parallel", False)):
            total = spread if "expert" in shard_of(parameter).split_over else everywhere
            total += torch.linalg.vector_norm(parameter.grad.float()).double().square()
    squared = all_reduce(everywhere + all_reduce(spread, mesh.expert), mesh.model)
    return float(squared.sqrt())


@torch.no_grad()
def guard_and_clip(
    parameters: Sequence[nn.Parameter], mesh: ProcessMesh, clip_norm: float | None
) -> tuple[float, bool]:
    """Clips to `clip_norm` (Pascanu et al. 2013). Returns the norm before it, and whether every gradient is finite.

    Gradients are already summed over the data axis, and the norm over model and expert ranks, so a non-finite value of one rank
    is seen by all of them.
    """
    norm = global_norm(parameters, mesh)
    if not torch.isfinite(torch.tensor(norm)):
        return norm, False
    if clip_norm is not None:
        scale = min(1.0, clip_norm / (norm + 1e-6))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
    return norm, True
