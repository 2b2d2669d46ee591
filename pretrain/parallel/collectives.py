"""Collectives along an axis of the mesh, as pairs of forward and backward.

Over an axis of size 1 each returns its input, so that model code holds one path for every layout. The two of Megatron-LM
(Shoeybi et al. 2019, section 3, `f` and `g`) carry all of tensor parallelism: `copy_to_axis` where a whole tensor enters ranks
that each use it for their part, `reduce_from_axis` where their partial sums leave.

Not taken: torch.distributed's differentiable functions, whose backward of an all-reduce is another all-reduce: right where
each rank has its own loss, twice too much where all ranks compute the same one. Cost: one all-reduce each; a copy of the
tensor where autograd may share it.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from pretrain.parallel.mesh import Axis

# Torch 2.13 renamed the two and warns of the old names at every call.
_all_gather_single: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter_single: Callable[..., Any] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class _CopyToAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:  # type: ignore[override]
        ctx.axis = axis
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        # Autograd may have handed the same gradient to another node: the sum is made in a copy.
        return all_reduce(grad.clone(memory_format=torch.contiguous_format), ctx.axis), None


class _ReduceFromAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:  # type: ignore[override]
        return all_reduce(tensor.clone(memory_format=torch.contiguous_format), axis)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


class _OnceOverAxis(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:  # type: ignore[override]
        return tensor.view_as(tensor) if axis.rank == 0 else torch.zeros_like(tensor)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


class _GradientOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:  # type: ignore[override]
        ctx.axis = axis
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad if ctx.axis.rank == 0 else torch.zeros_like(grad), None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:  # type: ignore[override]
        ctx.axis = axis
        return _all_gather(tensor, axis)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _reduce_scatter(grad, ctx.axis), None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: torch.Tensor, axis: Axis) -> torch.Tensor:  # type: ignore[override]
        ctx.axis = axis
        return _reduce_scatter(tensor, axis)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # type: ignore[override]
        return _all_gather(grad, ctx.axis), None


def _all_gather(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """(B, L, ...) of each rank to (B, size x L, ...), in the order of the axis."""
    parts = torch.empty((axis.size * tensor.shape[0], *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device)
    _all_gather_single(parts, tensor.contiguous(), group=axis.group)
    return parts.unflatten(0, (axis.size, -1)).movedim(0, 1).reshape(tensor.shape[0], -1, *tensor.shape[2:])


def _reduce_scatter(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The ranks' sum of (B, size x L, ...), of which each keeps its part (B, L, ...)."""
    batch, length = tensor.shape[0], tensor.shape[1] // axis.size
    assert length * axis.size == tensor.shape[1], f"{tensor.shape[1]} positions over {axis.size} ranks"
    parts = tensor.reshape(batch, axis.size, length, *tensor.shape[2:]).movedim(1, 0).contiguous()
    part = torch.empty_like(parts[0])
    _reduce_scatter_single(part, parts.flatten(0, 1), group=axis.group)
    return part


def all_reduce(tensor: torch.Tensor, axis: Axis, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
    """Reduces a contiguous tensor over the axis in place and returns it; unknown to autograd."""
    if axis.size > 1:
        dist.all_reduce(tensor, op=op, group=axis.group)
    return tensor


def copy_to_axis(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Forward: the tensor itself, the same on all ranks. Backward: the sum of the ranks' gradients."""
    return tensor if axis.size == 1 else _CopyToAxis.apply(tensor, axis)  # type: ignore[return-value]


def reduce_from_axis(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Forward: the sum of the ranks' tensors. Backward: the gradient itself, the same on all ranks."""
    return tensor if axis.size == 1 else _ReduceFromAxis.apply(tensor, axis)  # type: ignore[return-value]


def once_over_axis(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """A replicated addend of partial sums: the tensor on the first rank, zeros on the others.

    Backward: the gradient itself on every rank, for the sum's gradient is the same everywhere.
    """
    return tensor if axis.size == 1 else _OnceOverAxis.apply(tensor, axis)  # type: ignore[return-value]


def gradient_once(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Forward: the tensor itself. Backward: the gradient on the first rank, zeros on the others.

    For work that every rank does alike on a tensor whose gradient will be summed over them (past `copy_to_axis`).
    """
    return tensor if axis.size == 1 else _GradientOnce.apply(tensor, axis)  # type: ignore[return-value]


def gather_sequence(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Forward: (B, L, ...) of each rank to (B, size x L, ...). Backward: the sum of the ranks' gradients, each its part."""
    return tensor if axis.size == 1 else _GatherSequence.apply(tensor, axis)  # type: ignore[return-value]


def scatter_sequence(tensor: torch.Tensor, axis: Axis) -> torch.Tensor:
    """Forward: the sum of the ranks' (B, size x L, ...), each its part (B, L, ...). Backward: the gradient of all parts."""
    return tensor if axis.size == 1 else _ScatterSequence.apply(tensor, axis)  # type: ignore[return-value]
