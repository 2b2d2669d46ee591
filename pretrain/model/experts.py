"""The experts of a layer: feed-forwards whose weights are stacked, each applied to its own rows.

Legend: A rows in the order of experts, E experts (E/ep on this rank), D width of the stream, F inner width of an expert.

Experts are split over the expert axis by whole experts, and over the model axis by their inner width as the dense layer is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.feed_forward import ACTIVATIONS
from pretrain.model.initialization import ZEROS, matrix_distribution, residual_distribution
from pretrain.model.recompute import Runner, keep
from pretrain.model.settings import ModelSettings, MoESettings
from pretrain.parallel.collectives import once_over_axis
from pretrain.parallel.linear import new_parameter
from pretrain.parallel.mesh import Axis
from pretrain.parallel.random import Distribution
from pretrain.parallel.sequence import ModelMesh

_grouped_mm: Callable[..., Any] | None = getattr(F, "grouped_mm", getattr(torch, "_grouped_mm", None))
_ALIGNED = 8
"""Values of bf16 that the kernel's 16 bytes hold: rows of other widths are not aligned."""


class _GroupedProduct(torch.autograd.Function):
    """rows_e W_e^T for each expert e, by one product an expert.

    The parameter itself is kept for backward and not views of it: ZeRO-3 frees its memory between forward and backward. The
    gradient is made in one tensor, where autograd would fill a whole one for each expert.
    """

    @staticmethod
    def forward(ctx, rows: torch.Tensor, weight: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(rows, weight)
        ctx.counts = counts
        result = rows.new_empty((rows.shape[0], weight.shape[1]))
        for part, out, matrix in zip(rows.split(counts), result.split(counts), weight, strict=True):
            torch.mm(part, matrix.T, out=out)
        return result

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # type: ignore[override]
        rows, weight = ctx.saved_tensors
        grad_rows, grad_weight = torch.empty_like(rows), torch.empty_like(weight)
        pieces = (grad.contiguous().split(ctx.counts), rows.split(ctx.counts), grad_rows.split(ctx.counts))
        for g, part, out, matrix, out_matrix in zip(*pieces, weight, grad_weight, strict=True):
            torch.mm(g, matrix, out=out)
            torch.mm(g.T, part, out=out_matrix)
        return grad_rows, grad_weight, None


def grouped_product(rows: torch.Tensor, weight: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """(A, F_in) in the order of experts and (E, F_out, F_in) to (A, F_out): one kernel on a GPU in bf16, else a loop."""
    aligned = all(size % _ALIGNED == 0 for size in weight.shape[1:])
    if rows.is_cuda and rows.dtype == torch.bfloat16 and aligned and _grouped_mm is not None:
        ends = torch.tensor(counts, device=rows.device).cumsum(0, dtype=torch.int32)
        return _grouped_mm(rows, weight.transpose(1, 2), offs=ends)
    return _GroupedProduct.apply(rows, weight, list(counts))  # type: ignore[return-value]


class StackedLinear(nn.Module):
    """y = x W_e^T + b_e, with a weight (E, F_out, F_in) and perhaps a bias (E, F_out)."""

    def __init__(
        self, shape: tuple[int, int, int], axes: dict[int, Axis], *, weight: Distribution, bias: Distribution | None
    ) -> None:
        super().__init__()
        self.weight = new_parameter(shape, weight, axes)
        self.bias = None
        if bias is not None:
            self.bias = new_parameter(shape[:2], bias, {dim: axis for dim, axis in axes.items() if dim < 2})
            self.bias.stacked = True  # type: ignore[attr-defined]  # vectors to the optimizer: no weight decay
        self.partial_over = axes.get(2)
        """Over whose ranks the result is yet to be summed."""

    def forward(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """(A, F_in) in the order of experts, `counts` of each, to (A, F_out)."""
        result = grouped_product(rows, self.weight, counts)
        if self.bias is None:
            return result
        bias = self.bias if self.partial_over is None else once_over_axis(self.bias, self.partial_over)
        return result + bias.repeat_interleave(torch.tensor(counts, device=rows.device), 0, output_size=rows.shape[0])


class Experts(nn.Module):
    """D -> F -> D in each expert."""

    def __init__(
        self, model: ModelSettings, moe: MoESettings, mesh: ModelMesh, num_layers: int, activation: Runner = keep
    ) -> None:
        super().__init__()
        bias = ZEROS if "feed_forward" in model.biases else None
        inner = matrix_distribution(model, model.d_model, moe.d_ff)
        wide, axes = (moe.num_experts, moe.d_ff, model.d_model), {0: mesh.expert, 1: mesh.model}
        self.up = StackedLinear(wide, axes, weight=inner, bias=bias)
        self.gate = None
        if model.activation == "swiglu":
            self.gate = StackedLinear(wide, axes, weight=inner, bias=bias)
        outer = residual_distribution(model, moe.d_ff, num_layers)
        narrow = (moe.num_experts, model.d_model, moe.d_ff)
        self.down = StackedLinear(narrow, {0: mesh.expert, 2: mesh.model}, weight=outer, bias=bias)
        self.activation = ACTIVATIONS.get(model.activation, F.silu)
        self.run_activation = activation

    def forward(self, rows: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
        """(A, D) in the order of this rank's experts, `counts` of each, to this tensor rank's addend of (A, D)."""
        up = self.up(rows, counts)
        if self.gate is None:
            return self.run_activation(lambda up: self.down(self.activation(up), counts), up)
        gate = self.gate(rows, counts)
        return self.run_activation(lambda gate, up: self.down(self.activation(gate) * up, counts), gate, up)
