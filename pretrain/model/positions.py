"""Positions: added to the embeddings (sinusoidal, learned) or turned into the queries and keys (rotary).

Legend: B sequences, S tokens, H heads, K width of a head, D width of the stream.

Tables are plain attributes and no buffers: the engine casts a module's buffers to bf16, whose 8 bits of mantissa would blur
rotary angles at far positions. Cost: one fp32 table a model, built at the first use on each device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.carry import Carry, Flow
from pretrain.model.initialization import embedding_distribution
from pretrain.model.layer import Layer
from pretrain.model.settings import ModelSettings
from pretrain.parallel.linear import new_parameter


class _DeviceTable:
    """A table of constants, copied once to each device that asks."""

    def __init__(self, table: torch.Tensor) -> None:
        self._host = table
        self._copies: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The table on a device."""
        key = (device, dtype)
        if key not in self._copies:
            self._copies[key] = self._host.to(device=device, dtype=dtype)
        return self._copies[key]


def sinusoidal_table(length: int, d_model: int) -> torch.Tensor:
    """(length, D) fp32: sine in the even features, cosine in the odd ones (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(length, d_model, 10000.0)  # (length, ceil(D/2))
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)[:, :d_model].float()


def _angles(length: int, width: int, base: float) -> torch.Tensor:
    with torch.device("cpu"):
        frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        return torch.outer(torch.arange(length, dtype=torch.float64), frequencies)


class PositionsLayer(Layer):
    """The layer behind an embedding: adds positions to the stream and drops out. This one adds nothing."""

    def __init__(self, flow: Flow, positions_from: Callable[[Carry], torch.Tensor], dropout: nn.Module) -> None:
        """Args are the layer's flow, where (B, S) positions come from, and what drops out."""
        super().__init__(flow)
        self.positions_from = positions_from
        self.dropout = dropout

    def forward(self, carry: Carry) -> Carry:
        """Replaces `hidden` (B, S, D)."""
        return self.pass_on(carry, hidden=self.dropout(self.add(carry), carry.get("sample")))

    def add(self, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) with positions."""
        return carry["hidden"]


class SinusoidalPositions(PositionsLayer):
    """Adds a fixed table."""

    def __init__(self, model: ModelSettings, flow: Flow, *rest: Any) -> None:
        super().__init__(flow, *rest)
        self.table = _DeviceTable(sinusoidal_table(model.max_sequence_length, model.d_model))

    def add(self, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) with positions."""
        hidden = carry["hidden"]
        return hidden + F.embedding(self.positions_from(carry), self.table.on(hidden.device, hidden.dtype))


class LearnedPositions(PositionsLayer):
    """Adds a learned, replicated vector for each position."""

    def __init__(self, model: ModelSettings, flow: Flow, *rest: Any) -> None:
        super().__init__(flow, *rest)
        self.weight = new_parameter((model.max_sequence_length, model.d_model), embedding_distribution(model))

    def add(self, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) with positions."""
        return carry["hidden"] + F.embedding(self.positions_from(carry), self.weight)


class _Rotated(torch.autograd.Function):
    """Rotation by an angle; its gradient is the rotation back. Written for few passes over memory."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(cosine, sine)
        return _rotate(x, cosine, sine)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        cosine, sine = ctx.saved_tensors
        return _rotate(grad, cosine, -sine), None, None


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, -1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    out_first, out_second = out.chunk(2, -1)
    torch.mul(first, cosine, out=out_first).addcmul_(second, sine, value=-1.0)
    torch.mul(second, cosine, out=out_second).addcmul_(first, sine)
    return out.to(x.dtype)


class Rotary:
    """Su et al. 2021, RoFormer, section 3.2.2: feature i of a head is paired with feature i + K/2 (as in GPT-NeoX and Llama's
    published weights), and each pair is turned by position x base ** (-2i/K)."""

    def __init__(self, model: ModelSettings) -> None:
        angles = _angles(model.max_sequence_length, model.width_of_head, model.rotary_base)
        self._table = _DeviceTable(torch.stack((angles.cos(), angles.sin()), 1).float())  # (length, 2, K/2)

    def factors(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of (B, S) positions, each (B, S, 1, K/2), fp32."""
        rows = self._table.on(positions.device)[positions]
        return rows[:, :, None, 0], rows[:, :, None, 1]

    @staticmethod
    def rotate(x: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(B, S, H, K) to the same."""
        return _Rotated.apply(x, *factors)  # type: ignore[return-value]


def positions_of(documents: torch.Tensor) -> torch.Tensor:
    """(B, S) positions that restart wherever the document number changes, for a source that comes without any."""
    steps = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.zeros_like(documents)
    starts[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], steps[1:], 0)
    return steps - starts.cummax(1).values
