"""Linear layers whose weight is split over the model axis (Shoeybi et al. 2019, section 3).

A column-parallel layer holds rows of the weight (F_out/tp, F_in) and makes its part of the output features from the whole
input; a row-parallel layer holds columns (F_out, F_in/tp) and makes a partial sum of all output features from its part of the
input. A pair of them costs one all-reduce forward and one backward.

The caller makes them: what enters a column-parallel layer must have passed `Stream.enter`, what leaves a row-parallel one
must pass `Stream.leave` (sequence.py). Layers that read one input (query and key-value, up and gate) or whose outputs are added
(the branches of a parallel block) then share one all-reduce.

Not taken: torch's DTensor parallel styles (DeepSpeed's flat buffers do not take DTensors), packed projections with a
permuted storage order (every reader of a checkpoint would have to know the permutation).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pretrain.parallel.collectives import once_over_axis
from pretrain.parallel.mesh import Axis
from pretrain.parallel.random import Distribution, draw_
from pretrain.parallel.shard import Shard, set_shard, shard_of
from pretrain.parallel.weight_gradients import IMMEDIATE, WeightGradients


def new_parameter(
    shape: Sequence[int], distribution: Distribution, axes: Mapping[int, Axis] | None = None
) -> nn.Parameter:
    """An undrawn parameter with its record: equal parts along the dims of `axes`, padded where one does not divide.

    Args:
        shape: of the global parameter.
        distribution: its initial values, drawn by `place` once the global name is known.
        axes: dims that are split, and over which axis.
    """
    shard, local = Shard.split(tuple(shape), axes or {})
    parameter = nn.Parameter(torch.empty(local))
    set_shard(parameter, shard)
    parameter.distribution = distribution  # type: ignore[attr-defined]
    return parameter


def place(module: nn.Module, name: str, seed: int) -> None:
    """Gives every parameter of a module its global name, `name` + "." + its path, and its initial values."""
    for path, parameter in module.named_parameters():
        shard = shard_of(parameter).named(f"{name}.{path}")
        set_shard(parameter, shard)
        draw_(parameter, shard, parameter.distribution, seed)  # type: ignore[attr-defined]


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with the output features split; F_out must divide by the axis."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axis: Axis,
        *,
        weight: Distribution,
        bias: Distribution | None = None,
        weight_gradients: WeightGradients = IMMEDIATE,
    ) -> None:
        super().__init__()
        self.weight_gradients = weight_gradients
        assert out_features % axis.size == 0, f"{out_features} output features over {axis.size} ranks"
        self.weight = new_parameter((out_features, in_features), weight, {0: axis})
        self.bias = None if bias is None else new_parameter((out_features,), bias, {0: axis})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F_in), past `Stream.enter`, to (..., F_out/tp)."""
        return self.weight_gradients.linear(x, self.weight, self.bias)


class ReplicatedLinear(nn.Module):
    """y = x W^T + b, the same on every rank: for key-value heads that do not divide by the axis."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        weight: Distribution,
        bias: Distribution | None = None,
        weight_gradients: WeightGradients = IMMEDIATE,
    ) -> None:
        super().__init__()
        self.weight_gradients = weight_gradients
        self.weight = new_parameter((out_features, in_features), weight)
        self.bias = None if bias is None else new_parameter((out_features,), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F_in), past `Stream.enter` and `gradient_once`, to (..., F_out)."""
        return self.weight_gradients.linear(x, self.weight, self.bias)


class RowParallelLinear(nn.Module):
    """y = x W^T + b as partial sums of the ranks; F_in must divide by the axis. The bias is replicated."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        axis: Axis,
        *,
        weight: Distribution,
        bias: Distribution | None = None,
        weight_gradients: WeightGradients = IMMEDIATE,
    ) -> None:
        super().__init__()
        self.weight_gradients = weight_gradients
        assert in_features % axis.size == 0, f"{in_features} input features over {axis.size} ranks"
        self.axis = axis
        self.weight = new_parameter((out_features, in_features), weight, {1: axis})
        self.bias = None if bias is None else new_parameter((out_features,), bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., F_in/tp) to this rank's addend of (..., F_out); the bias is counted once among the ranks."""
        bias = self.bias if self.bias is None else once_over_axis(self.bias, self.axis)
        return self.weight_gradients.linear(x, self.weight, bias)
