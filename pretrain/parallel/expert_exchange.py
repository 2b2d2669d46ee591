"""Rows of tokens to the ranks that hold their experts, and back.

Legend: A rows, each a token for one expert, in the order of experts; D features; E experts, of which a rank of the expert axis
holds E/ep consecutive ones.

Rows travel by an all-to-all whose parts are as unequal as the router made them: first the counts, then the rows; backward the
same way round. Ranks of one expert axis have the same tensor coordinate, so a row goes out once a tensor rank (whole: the
experts' weights are split by their inner width).

Not taken: parts padded to a capacity (equal sizes, but tokens are dropped or memory is spent on padding), gathering all tokens
everywhere (ep times the memory). Cost: one wait for the counts on the host a layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from pretrain.parallel.mesh import Axis

GroupedFunction = Callable[[torch.Tensor, Sequence[int]], torch.Tensor]
"""(rows (A, D) in the order of a rank's experts, rows of each) -> (A, D_out), row by row."""


class _Rows(torch.autograd.Function):
    """Row i of the result is row `order[i] // repeats` of the input; `order` names each of the repeated rows at most once."""

    @staticmethod
    def forward(ctx, rows: torch.Tensor, order: torch.Tensor, repeats: int) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(order)
        ctx.repeats, ctx.total = repeats, rows.shape[0] * repeats
        return rows.index_select(0, order if repeats == 1 else order // repeats)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        # Copied to its own place and then summed: adding to shared rows has no fixed order on a GPU.
        (order,) = ctx.saved_tensors
        spread = grad.new_zeros((ctx.total, grad.shape[1])).index_copy_(0, order, grad)
        return spread if ctx.repeats == 1 else spread.view(-1, ctx.repeats, grad.shape[1]).sum(1), None, None


def take_rows(rows: torch.Tensor, order: torch.Tensor, repeats: int = 1) -> torch.Tensor:
    """(N, D), each row `repeats` times, to (A, D) in the given order, which names none of the N x repeats twice."""
    return _Rows.apply(rows, order, repeats)  # type: ignore[return-value]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, sent: list[int], received: list[int], axis: Axis) -> torch.Tensor:  # type: ignore[override]
        ctx.sent, ctx.received, ctx.axis = sent, received, axis
        return _all_to_all(rows, sent, received, axis)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # type: ignore[override]
        return _all_to_all(grad, ctx.received, ctx.sent, ctx.axis), None, None, None


def _all_to_all(rows: torch.Tensor, sent: list[int], received: list[int], axis: Axis) -> torch.Tensor:
    """(sum of sent, ...) to (sum of received, ...): the parts of all ranks for this one, in the order of the axis."""
    result = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(result, rows.contiguous(), received, sent, group=axis.group)
    return result


@dataclass(frozen=True)
class ExpertExchange:
    """Where the rows of one layer and micro-batch go."""

    axis: Axis
    sent: list[int]
    """Rows for each rank of the axis."""
    received: list[int]
    order: torch.Tensor
    """(A',) received rows in the order of this rank's experts."""
    places: torch.Tensor
    """(A',) the inverse of `order`."""
    counts: list[int]
    """(E/ep) rows of each of this rank's experts."""

    @staticmethod
    def of(counts: torch.Tensor, axis: Axis) -> "ExpertExchange":
        """From (E,) int64, this rank's rows for each expert; every rank of the axis calls it."""
        parts = counts.view(axis.size, -1)
        incoming = torch.empty_like(parts)
        dist.all_to_all_single(incoming, parts.contiguous(), group=axis.group)
        own = torch.arange(parts.shape[1], device=counts.device).repeat(axis.size)
        order = own.repeat_interleave(incoming.flatten()).argsort(stable=True)
        sums = torch.stack((parts.sum(1), incoming.sum(1))).tolist()
        return ExpertExchange(axis, sums[0], sums[1], order, order.argsort(), incoming.sum(0).tolist())

    def run(self, rows: torch.Tensor, function: GroupedFunction) -> torch.Tensor:
        """(A, D) in the order of experts through the experts, wherever they are: (A, D_out) in the same order."""
        arrived: torch.Tensor = _Exchange.apply(rows, self.sent, self.received, self.axis)  # type: ignore[assignment]
        done = function(take_rows(arrived, self.order), self.counts)
        return _Exchange.apply(take_rows(done, self.places), self.received, self.sent, self.axis)  # type: ignore[return-value]


def through_experts(rows: torch.Tensor, counts: torch.Tensor, axis: Axis, function: GroupedFunction) -> torch.Tensor:
    """Rows in the order of all experts through the experts of the axis's ranks.

    Args:
        rows: (A, D).
        counts: (E,) int64, rows of each expert.
        axis: over which the experts are spread.
        function: of this rank's experts.
    """
    if axis.size == 1:
        return function(rows, counts.tolist())
    return ExpertExchange.of(counts, axis).run(rows, function)
