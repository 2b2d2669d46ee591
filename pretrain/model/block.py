"""One block for every family: self-attention, perhaps cross-attention, feed-forward, around a residual stream.

Legend: B sequences, S positions, D width of the stream.

serial, pre-norm    x = x + attention(norm(x)); x = x + feed_forward(norm(x))             GPT-2, Llama
serial, post-norm   x = norm(x + attention(x)); x = norm(x + feed_forward(x))             Vaswani et al. 2017
parallel            x = x + attention(norm(x)) + feed_forward(norm(x))                    PaLM, section 2
Cross-attention stands between the two, with a norm of its own in a serial block.

A stage of tensor parallelism is seen here alone: the input of a branch passes `copy_to_axis`, its output `reduce_from_axis`.
A parallel block does each once, which is what makes it cheaper over many ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from pretrain.model.attention import Attention, RotaryFactors
from pretrain.model.carry import Carry, Flow
from pretrain.model.dropout import build_dropout
from pretrain.model.feed_forward import build_feed_forward
from pretrain.model.layer import Layer
from pretrain.model.masks import Mask, Masks
from pretrain.model.norm import Norm
from pretrain.model.positions import Rotary, positions_of
from pretrain.model.settings import ModelSettings
from pretrain.parallel.collectives import copy_to_axis, reduce_from_axis
from pretrain.parallel.mesh import Axis


@dataclass(frozen=True)
class Sight:
    """What the branches of a block need beside the stream."""

    mask: Mask
    rotary: RotaryFactors | None
    sample: torch.Tensor | None


@dataclass(frozen=True)
class DecoderView:
    """Earlier positions of the same document."""

    masks: Masks
    rotary: Rotary | None

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the carry that it looks at."""
        return frozenset({"documents"} | ({"positions"} if self.rotary else set()))

    def __call__(self, carry: Carry) -> Sight:
        """The sight of one micro-batch."""
        mask = self.masks.causal(carry["documents"], carry["hidden"].dtype)
        factors = self.rotary.factors(carry["positions"]) if self.rotary else None
        return Sight(mask, factors, carry.get("sample"))


@dataclass(frozen=True)
class EncoderView:
    """All positions of the same source document."""

    masks: Masks
    rotary: Rotary | None

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the carry that it looks at."""
        return frozenset({"source_documents"})

    def __call__(self, carry: Carry) -> Sight:
        """The sight of one micro-batch."""
        documents = carry["source_documents"]
        mask = self.masks.source(documents, carry["hidden"].dtype)
        factors = self.rotary.factors(positions_of(documents)) if self.rotary else None
        return Sight(mask, factors, carry.get("sample"))


class View(Protocol):
    """How self-attention sees its own stream."""

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the carry that it looks at."""
        ...

    def __call__(self, carry: Carry) -> Sight:
        """The sight of one micro-batch."""
        ...


@dataclass(frozen=True)
class BlockContext:
    """What a block is built from, beside the model."""

    axis: Axis
    seed: int
    name: str
    num_layers: int
    """Blocks of the stack it is in."""
    view: View
    cross_masks: Masks | None = None
    """Of a block with cross-attention."""


Branch = Callable[[torch.Tensor], torch.Tensor]


def _pre_norm(x: torch.Tensor, norm: Norm, branch: Branch) -> torch.Tensor:
    return x + branch(norm(x))


def _post_norm(x: torch.Tensor, norm: Norm, branch: Branch) -> torch.Tensor:
    return norm(x + branch(x))


class Block(Layer):
    """What serial and parallel blocks share: their parts, without the norms."""

    def __init__(self, model: ModelSettings, context: BlockContext, flow: Flow) -> None:
        super().__init__(flow)
        axis, seed, name, depth = context.axis, context.seed, context.name, context.num_layers
        self.axis, self.view, self.cross_masks = axis, context.view, context.cross_masks
        self.residual = {"pre": _pre_norm, "post": _post_norm}[model.norm_position]
        self.attention = Attention(model, axis, depth, seed, f"{name}.attention")
        self.cross_attention = None
        if self.cross_masks is not None:
            self.cross_attention = Attention(model, axis, depth, seed, f"{name}.cross_attention")
        self.feed_forward = build_feed_forward(model, axis, depth)

    def forward(self, carry: Carry) -> Carry:
        """Replaces `hidden` (B, S, D)."""
        return self.pass_on(carry, hidden=self.transform(carry["hidden"], self.view(carry), carry))

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) behind the block."""
        raise NotImplementedError

    def attend(self, whole: torch.Tensor, split: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Self-attention's addend (B, S, D); `split` is `whole` past `copy_to_axis`."""
        return self.attention(split, split, whole, sight.mask, sight.rotary, sight.sample)

    def attend_across(self, split: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Cross-attention's addend (B, S, D)."""
        assert self.cross_attention is not None and self.cross_masks is not None
        memory = carry["memory"]
        mask = self.cross_masks.cross(carry["documents"], carry["source_documents"], split.dtype)
        return self.cross_attention(split, copy_to_axis(memory, self.axis), memory, mask, sample=carry.get("sample"))


class SerialBlock(Block):
    """Branches one after another, each with its norm."""

    def __init__(self, model: ModelSettings, context: BlockContext, flow: Flow) -> None:
        super().__init__(model, context, flow)
        rate, seed, name = model.dropout, context.seed, context.name
        self.attention_norm = Norm(model)
        self.attention_dropout = build_dropout(rate, seed, f"{name}.attention")
        if self.cross_attention is not None:
            self.cross_attention_norm = Norm(model)
            self.cross_attention_dropout = build_dropout(rate, seed, f"{name}.cross_attention")
        self.feed_forward_norm = Norm(model)
        self.feed_forward_dropout = build_dropout(rate, seed, f"{name}.feed_forward")

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) behind the block."""

        def attention(h: torch.Tensor) -> torch.Tensor:
            addend = self.attend(h, copy_to_axis(h, self.axis), sight)
            return self.attention_dropout(reduce_from_axis(addend, self.axis), sight.sample)

        def cross_attention(h: torch.Tensor) -> torch.Tensor:
            addend = self.attend_across(copy_to_axis(h, self.axis), carry)
            return self.cross_attention_dropout(reduce_from_axis(addend, self.axis), sight.sample)

        def feed_forward(h: torch.Tensor) -> torch.Tensor:
            addend = self.feed_forward(copy_to_axis(h, self.axis))
            return self.feed_forward_dropout(reduce_from_axis(addend, self.axis), sight.sample)

        x = self.residual(x, self.attention_norm, attention)
        if self.cross_attention is not None:
            x = self.residual(x, self.cross_attention_norm, cross_attention)
        return self.residual(x, self.feed_forward_norm, feed_forward)


class ParallelBlock(Block):
    """Branches side by side behind one norm, summed before the reduction."""

    def __init__(self, model: ModelSettings, context: BlockContext, flow: Flow) -> None:
        super().__init__(model, context, flow)
        self.norm = Norm(model)
        self.dropout = build_dropout(model.dropout, context.seed, context.name)

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) behind the block."""

        def branches(h: torch.Tensor) -> torch.Tensor:
            split = copy_to_axis(h, self.axis)
            addend = self.attend(h, split, sight) + self.feed_forward(split)
            if self.cross_attention is not None:
                addend = addend + self.attend_across(split, carry)
            return self.dropout(reduce_from_axis(addend, self.axis), sight.sample)

        return self.residual(x, self.norm, branches)


def build_block(model: ModelSettings, context: BlockContext, flow: Flow) -> Block:
    """The block that the settings name."""
    return {"serial": SerialBlock, "parallel": ParallelBlock}[model.block](model, context, flow)
