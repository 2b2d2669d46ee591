"""The position-wise feed-forward layer (Vaswani et al. 2017, section 3.3): up (column-parallel), activation, down (row-parallel).

Legend: B sequences, S tokens, D width of the stream, F inner width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.initialization import ZEROS, matrix_distribution, residual_distribution
from pretrain.model.settings import ModelSettings
from pretrain.parallel.linear import ColumnParallelLinear, RowParallelLinear
from pretrain.parallel.sequence import ModelMesh

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


class FeedForward(nn.Module):
    """D -> F -> D with an element-wise activation between."""

    def __init__(self, model: ModelSettings, mesh: ModelMesh, num_layers: int) -> None:
        super().__init__()
        bias = ZEROS if "feed_forward" in model.biases else None
        inner = matrix_distribution(model, model.d_model, model.d_ff)
        self.up = ColumnParallelLinear(model.d_model, model.d_ff, mesh.model, weight=inner, bias=bias)
        outer = residual_distribution(model, model.d_ff, num_layers)
        self.down = RowParallelLinear(model.d_ff, model.d_model, mesh.model, weight=outer, bias=bias)
        self.activation = _ACTIVATIONS.get(model.activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D), past `Stream.enter`, to this rank's addend (B, S, D), which has yet to pass `Stream.leave`."""
        return self.down(self.inner(x))

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, F/tp)."""
        assert self.activation is not None
        return self.activation(self.up(x))


class GatedFeedForward(FeedForward):
    """SwiGLU: silu(gate(x)) * up(x) (Shazeer 2020, GLU variants improve transformer)."""

    def __init__(self, model: ModelSettings, mesh: ModelMesh, num_layers: int) -> None:
        super().__init__(model, mesh, num_layers)
        bias = ZEROS if "feed_forward" in model.biases else None
        inner = matrix_distribution(model, model.d_model, model.d_ff)
        self.gate = ColumnParallelLinear(model.d_model, model.d_ff, mesh.model, weight=inner, bias=bias)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        """(B, S, D) to (B, S, F/tp)."""
        return F.silu(self.gate(x)) * self.up(x)


def build_feed_forward(model: ModelSettings, mesh: ModelMesh, num_layers: int) -> FeedForward:
    """The feed-forward layer that the settings name.

    Args:
        model: the model.
        mesh: the model's.
        num_layers: blocks of the stack it is in (for the initial scale of `down`).
    """
    return (GatedFeedForward if model.activation == "swiglu" else FeedForward)(model, mesh, num_layers)
