"""Positions: added to the embeddings (sinusoidal, learned) or turned into the queries and keys (rotary).

Legend: B sequences, S tokens, H heads, K width of a head, D width of the stream.

Tables are plain values and no buffers: the engine casts a module's buffers to bf16, whose 8 bits of mantissa would blur
rotary angles at far positions. Cost: one table a model and device, made at the first use and doubled when a sequence is
longer; its length follows the shape of a batch, so that no accelerator is waited for.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.carry import Carry, Flow
from pretrain.model.initialization import embedding_distribution
from pretrain.model.layer import Layer
from pretrain.model.settings import ModelSettings
from pretrain.parallel.linear import new_parameter
from pretrain.parallel.sequence import Stream


class _Table:
    """Rows of constants, one a position, kept on each device and in each type that asked."""

    def __init__(self, length: int, make: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._length = length
        self._make = make
        self._kept: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

    def rows(self, positions: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
        """(B, L) positions within whole sequences of `length` to their rows (B, L, ...)."""
        while self._length < length:
            self._length *= 2
            self._kept.clear()
        key = (positions.device, dtype)
        if key not in self._kept:
            with torch.device("cpu"):
                table = self._make(torch.arange(self._length, dtype=torch.float64))
            self._kept[key] = table.to(positions.device, dtype)
        return self._kept[key][positions]


def _angles(positions: torch.Tensor, width: int, base: float) -> torch.Tensor:
    """Angles (P, width/2) of (P,) positions: position x base ** (-2i / width)."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(positions, frequencies)


def sinusoids(positions: torch.Tensor, d_model: int) -> torch.Tensor:
    """(P,) positions to (P, D): sine in the even features, cosine in the odd ones (Vaswani et al. 2017, section 3.5)."""
    angles = _angles(positions, d_model, 10000.0)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(1)


class PositionsLayer(Layer):
    """The layer behind an embedding: adds positions to the stream and drops out. This one adds nothing."""

    def __init__(
        self, flow: Flow, positions_from: Callable[[Carry], torch.Tensor], dropout: nn.Module, stream: Stream
    ) -> None:
        """Args are the layer's flow, where (B, C) positions come from, what drops out, and what positions are added to."""
        super().__init__(flow)
        self.positions_from = positions_from
        self.dropout = dropout
        self.stream = stream

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
        self.table = _Table(model.max_sequence_length, partial(sinusoids, d_model=model.d_model))

    def add(self, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) with positions."""
        hidden, positions = carry["hidden"], self.positions_from(carry)
        length = positions.shape[1] * self.stream.sequence.parts
        return hidden + self.table.rows(self.stream.take(positions), length, hidden.dtype)


class LearnedPositions(PositionsLayer):
    """Adds a learned, replicated vector for each position."""

    def __init__(self, model: ModelSettings, flow: Flow, *rest: Any) -> None:
        super().__init__(flow, *rest)
        self.weight = new_parameter((model.max_sequence_length, model.d_model), embedding_distribution(model))

    def add(self, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) with positions."""
        positions = self.stream.take(self.positions_from(carry))
        return carry["hidden"] + F.embedding(positions, self.stream.shared(self.weight))


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
        width, base = model.width_of_head, model.rotary_base
        assert width % 2 == 0, f"rotary positions turn pairs of features, of which a head of {width} has half a one"

        def make(positions: torch.Tensor) -> torch.Tensor:
            angles = _angles(positions, width, base)
            return torch.stack((angles.cos(), angles.sin()), 1)  # (P, 2, K/2)

        self._table = _Table(model.max_sequence_length, make)

    def factors(self, positions: torch.Tensor, length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines of (B, C) positions, each (B, C, 1, K/2), fp32; length is that of whole sequences, None: C."""
        rows = self._table.rows(positions, length or positions.shape[1], torch.float32)
        return rows[:, :, None, 0], rows[:, :, None, 1]

    @staticmethod
    def rotate(x: torch.Tensor, factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """(B, S, H, K) to the same."""
        return _Rotated.apply(x, *factors)  # type: ignore[return-value]


def build_positions(
    model: ModelSettings,
    flow: Flow,
    positions_from: Callable[[Carry], torch.Tensor],
    dropout: nn.Module,
    stream: Stream,
) -> PositionsLayer:
    """The layer that the settings name; it adds nothing where positions are rotary or none."""
    if model.positions == "sinusoidal":
        return SinusoidalPositions(model, flow, positions_from, dropout, stream)
    if model.positions == "learned":
        return LearnedPositions(model, flow, positions_from, dropout, stream)
    return PositionsLayer(flow, positions_from, dropout, stream)


def positions_of(documents: torch.Tensor) -> torch.Tensor:
    """(B, S) positions that restart wherever the document number changes, for a source that comes without any."""
    steps = torch.arange(documents.shape[1], device=documents.device)
    starts = torch.zeros_like(documents)
    starts[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], steps[1:], 0)
    return steps - starts.cummax(1).values
