"""The position-wise feed-forward layer (Vaswani et al. 2017, section 3.3): up (column-parallel), activation, down (row-parallel).

Legend: B sequences, S tokens, D width of the stream, F inner width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.initialization import ZEROS, matrix_distribution, residual_distribution
from pretrain.model.recompute import Runner, keep
from pretrain.model.settings import ModelSettings
from pretrain.parallel.linear import ColumnParallelLinear, RowParallelLinear
from pretrain.parallel.sequence import ModelMesh

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """D -> F -> D with an element-wise activation between."""

    def __init__(
        self, model: ModelSettings, mesh: ModelMesh, num_layers: int, width: int, activation: Runner = keep
    ) -> None:
        super().__init__()
        bias = ZEROS if "feed_forward" in model.biases else None
        inner, gradients = matrix_distribution(model, model.d_model, width), mesh.weight_gradients
        self.up = ColumnParallelLinear(
            model.d_model, width, mesh.model, weight=inner, bias=bias, weight_gradients=gradients
        )
        outer = residual_distribution(model, width, num_layers)
        self.down = RowParallelLinear(
            width, model.d_model, mesh.model, weight=outer, bias=bias, weight_gradients=gradients
        )
        self.activation = ACTIVATIONS.get(model.activation)
        self.run_activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D), past `Stream.enter`, to this rank's addend (..., D), which has yet to pass `Stream.leave`."""
        return self.run_activation(self.close, self.up(x))

    def close(self, up: torch.Tensor) -> torch.Tensor:
        """(..., F/tp), what `up` made, to (..., D)."""
        assert self.activation is not None
        return self.down(self.activation(up))


class GatedFeedForward(FeedForward):
    """SwiGLU: silu(gate(x)) * up(x) (Shazeer 2020, GLU variants improve transformer)."""

    def __init__(
        self, model: ModelSettings, mesh: ModelMesh, num_layers: int, width: int, activation: Runner = keep
    ) -> None:
        super().__init__(model, mesh, num_layers, width, activation)
        bias = ZEROS if "feed_forward" in model.biases else None
        inner, gradients = matrix_distribution(model, model.d_model, width), mesh.weight_gradients
        self.gate = ColumnParallelLinear(
            model.d_model, width, mesh.model, weight=inner, bias=bias, weight_gradients=gradients
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D), past `Stream.enter`, to this rank's addend (..., D), which has yet to pass `Stream.leave`."""
        return self.run_activation(self.close_gated, self.gate(x), self.up(x))

    def close_gated(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        """Two of (..., F/tp) to (..., D)."""
        return self.down(F.silu(gate) * up)


def build_feed_forward(
    model: ModelSettings, mesh: ModelMesh, num_layers: int, activation: Runner = keep, *, width: int | None = None
) -> FeedForward:
    """The feed-forward layer that the settings name.

    Args:
        model: the model.
        mesh: the model's.
        num_layers: blocks of the stack it is in (for the initial scale of `down`).
        activation: runs what is between the first products and the end of the last.
        width: inner one; None: the model's.
    """
    kind = GatedFeedForward if model.activation == "swiglu" else FeedForward
    return kind(model, mesh, num_layers, width or model.d_ff, activation)
