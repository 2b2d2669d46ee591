"""The gradient norm of DeepSpeed's optimizers, summed over ranks once.

They sum squares once for each parameter group, over all stages of a pipeline: stages with unequal numbers of groups (one has no
vectors, or no experts) wait for each other for ever. And the BF16 optimizer leaves tensor ranks out of the norm of spread
experts, for DeepSpeed's own are not split by them (`get_global_norm_of_tensors`, deepspeed/runtime/utils.py:957). Here a rank
sums all of its groups, and all ranks sum once. What counts: replicated parameters on the first tensor rank, tied copies on the
first stage, spread experts on each rank that holds others.
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from pretrain.parallel.collectives import all_reduce
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import shard_of


def measure_once(optimizer: Any, mesh: ProcessMesh) -> None:
    """Gives a ZeRO-1, ZeRO-2 or BF16 optimizer of DeepSpeed, offloaded or not, this norm."""
    if hasattr(optimizer, "get_grads_for_norm"):
        optimizer.get_grads_for_norm = MethodType(partial(_for_norm, optimizer.get_grads_for_norm, mesh), optimizer)
    else:
        squares = _offloaded_squares if getattr(optimizer, "cpu_offload", False) else _squares
        optimizer.scaled_global_norm = MethodType(partial(_norm, squares, mesh), optimizer)


def _for_norm(original: Callable[..., Any], mesh: ProcessMesh, bf16: Any, for_clipping: bool = False) -> Any:
    """In place of the gradients: one value a data rank, which the caller squares and sums over stages and tensor ranks."""
    if for_clipping:
        return original(for_clipping=True)
    everywhere, spread = torch.zeros(2, dtype=torch.float32, device=mesh.device).unbind()
    for parameters, gradients in zip(bf16.bf16_groups, bf16.fp32_groups_gradients, strict=True):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if _counts(parameter, mesh):
                total = spread if "expert" in shard_of(parameter).split_over else everywhere
                total += _square(gradient)
    return [(everywhere + all_reduce(spread, mesh.expert)).sqrt().view(1)], {}


Squares = Callable[[Any], Iterator[tuple[nn.Parameter, torch.Tensor]]]
"""Of a DeepSpeed optimizer: each parameter that this data rank has a part of, with the square of its part's gradient."""


def _squares(zero: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    for group, parameters in enumerate(zero.params_in_partition):
        gradients = (g for g in zero.averaged_gradients[group] if not getattr(g, "_zero_padding", False))
        for gradient, parameter in zip(gradients, parameters, strict=False):
            yield parameter, _square(gradient)


def _offloaded_squares(zero: Any) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
    # Gradients have left the device one after another; their norms were taken on the way.
    for parameters in zero.params_in_partition:
        for parameter in parameters:
            norm = zero.norm_for_param_grads.get(zero.get_param_id(parameter))
            if norm is not None:
                yield parameter, norm.float().square()


def _norm(squares: Squares, mesh: ProcessMesh, zero: Any, norm_type: int = 2) -> torch.Tensor:
    """Of gradients that each data rank holds another part of."""
    assert norm_type == 2
    total = torch.zeros((), dtype=torch.float32, device=mesh.device)
    for parameter, square in squares(zero):
        if _counts(parameter, mesh):
            total += square.to(total.device)
    for ranks in (zero.dp_process_group, zero.model_parallel_group):  # under a pipeline the latter spans its stages too
        dist.all_reduce(total, group=ranks)
    norm = total.sqrt()
    return torch.where(torch.isfinite(norm), norm, torch.full_like(norm, float("inf")))


def _counts(parameter: nn.Parameter, mesh: ProcessMesh) -> bool:
    if getattr(parameter, "ds_pipe_replicated", False):
        return False
    return mesh.model.rank == 0 or getattr(parameter, "tensor_model_parallel", False)


def _square(gradient: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(gradient.detach().float()).square()
