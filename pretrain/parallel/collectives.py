"""Collectives along an axis of the mesh, as pairs of forward and backward.

Over an axis of size 1 each returns its input, so that model code holds one path for every layout. The two of Megatron-LM
(Shoeybi et al. 2019, section 3, `f` and `g`) carry all of tensor parallelism: `copy_to_axis` where a whole tensor enters ranks
that each use it for their part, `reduce_from_axis` where their partial sums leave.

Not taken: torch.distributed's differentiable functions, whose backward of an all-reduce is another all-reduce: right where
each rank has its own loss, twice too much where all ranks compute the same one. Cost: one all-reduce each; a copy of the
tensor where autograd may share it.
"""

import torch
import torch.distributed as dist

from pretrain.parallel.mesh import Axis


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
