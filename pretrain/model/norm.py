"""Normalisation over the width of the residual stream. Statistics are computed in fp32 whatever the input's precision.

Torch's fused kernels accumulate in fp32 by themselves, so a bf16 stream is not cast back and forth. Weights are replicated; where
the stream is split, each rank has the gradient of its positions, and `Stream.shared` sums them.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.carry import Carry, Flow
from pretrain.model.initialization import ONES, ZEROS
from pretrain.model.layer import Layer
from pretrain.model.settings import ModelSettings
from pretrain.parallel.linear import new_parameter
from pretrain.parallel.sequence import Stream


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Ba, Kiros and Hinton 2016, over the last dim."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, epsilon: float) -> torch.Tensor:
    """Zhang and Sennrich 2019, over the last dim; it has no bias."""
    assert bias is None
    return F.rms_norm(x, weight.shape, weight, epsilon)


Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]
_KERNELS: dict[str, Kernel] = {"layernorm": layer_norm, "rmsnorm": rms_norm}


def _parameters(model: ModelSettings) -> tuple[nn.Parameter, nn.Parameter | None]:
    shape = (model.d_model,)
    has_bias = model.norm == "layernorm" and "norm" in model.biases
    return new_parameter(shape, ONES), new_parameter(shape, ZEROS) if has_bias else None


class Norm(nn.Module):
    """The norm that the settings name, within a block."""

    def __init__(self, model: ModelSettings, stream: Stream) -> None:
        super().__init__()
        self.weight, self.bias = _parameters(model)
        self.kernel, self.epsilon, self.stream = _KERNELS[model.norm], model.norm_epsilon, stream

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, L, D) of the stream to the same."""
        bias = None if self.bias is None else self.stream.shared(self.bias)
        return self.kernel(x, self.stream.shared(self.weight), bias, self.epsilon)


class NormLayer(Layer):
    """The norm at the end of a pre-norm stack. It holds the parameters itself, so that they are `final_norm.weight`."""

    def __init__(self, model: ModelSettings, stream: Stream, flow: Flow) -> None:
        super().__init__(flow)
        self.weight, self.bias = _parameters(model)
        self.kernel, self.epsilon, self.stream = _KERNELS[model.norm], model.norm_epsilon, stream

    def forward(self, carry: Carry) -> Carry:
        """Replaces `hidden` (B, L, D)."""
        bias = None if self.bias is None else self.stream.shared(self.bias)
        weight = self.stream.shared(self.weight)
        return self.pass_on(carry, hidden=self.kernel(carry["hidden"], weight, bias, self.epsilon))
