"""One block for every family: self-attention, perhaps cross-attention, feed-forward, around a residual stream.

Legend: B sequences, S positions, D width of the stream.

serial, pre-norm    x = x + attention(norm(x)); x = x + feed_forward(norm(x))             GPT-2, Llama
serial, post-norm   x = norm(x + attention(x)); x = norm(x + feed_forward(x))             Vaswani et al. 2017
parallel            x = x + attention(norm(x)) + feed_forward(norm(x))                    PaLM, section 2
Cross-attention stands between the two, with a norm of its own in a serial block.

Tensor parallelism is seen here alone: the input of a branch passes `Stream.enter`, its output `Stream.leave`. A parallel block
does each once, which is what makes it cheaper over many ranks.
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
from pretrain.parallel.sequence import ModelMesh, SequenceSplit


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
    sequence: SequenceSplit

    @property
    def reads(self) -> frozenset[str]:
        """Fields of the carry that it looks at."""
        return frozenset({"source_documents"})

    def __call__(self, carry: Carry) -> Sight:
        """The sight of one micro-batch."""
        documents = carry["source_documents"]
        mask = self.masks.source(documents, carry["hidden"].dtype)
        factors = self.rotary.factors(self.sequence.take(positions_of(documents))) if self.rotary else None
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

    mesh: ModelMesh
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
        mesh, seed, name, depth = context.mesh, context.seed, context.name, context.num_layers
        self.stream, self.view, self.cross_masks = mesh.stream, context.view, context.cross_masks
        self.residual = {"pre": _pre_norm, "post": _post_norm}[model.norm_position]
        self.attention = Attention(model, mesh, depth, seed, f"{name}.attention")
        self.cross_attention = None
        if self.cross_masks is not None:
            self.cross_attention = Attention(model, mesh, depth, seed, f"{name}.cross_attention")
        self.feed_forward = build_feed_forward(model, mesh, depth)

    def forward(self, carry: Carry) -> Carry:
        """Replaces `hidden` (B, S, D)."""
        return self.pass_on(carry, hidden=self.transform(carry["hidden"], self.view(carry), carry))

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) behind the block."""
        raise NotImplementedError

    def attend(self, entered: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Self-attention's addend (B, C, D) of what passed `Stream.enter`."""
        return self.attention(entered, entered, sight.mask, sight.rotary, sight.sample)

    def attend_across(self, entered: torch.Tensor, carry: Carry) -> torch.Tensor:
        """Cross-attention's addend (B, C, D) of what passed `Stream.enter`."""
        assert self.cross_attention is not None and self.cross_masks is not None
        memory = self.stream.enter(carry["memory"])
        mask = self.cross_masks.cross(carry["documents"], carry["source_documents"], entered.dtype)
        return self.cross_attention(entered, memory, mask, sample=carry.get("sample"))


class SerialBlock(Block):
    """Branches one after another, each with its norm."""

    def __init__(self, model: ModelSettings, context: BlockContext, flow: Flow) -> None:
        super().__init__(model, context, flow)
        rate, seed, name, stream = model.dropout, context.seed, context.name, context.mesh.stream
        self.attention_norm = Norm(model, stream)
        self.attention_dropout = build_dropout(rate, seed, f"{name}.attention", stream)
        if self.cross_attention is not None:
            self.cross_attention_norm = Norm(model, stream)
            self.cross_attention_dropout = build_dropout(rate, seed, f"{name}.cross_attention", stream)
        self.feed_forward_norm = Norm(model, stream)
        self.feed_forward_dropout = build_dropout(rate, seed, f"{name}.feed_forward", stream)

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) behind the block."""

        def attention(h: torch.Tensor) -> torch.Tensor:
            addend = self.attend(self.stream.enter(h), sight)
            return self.attention_dropout(self.stream.leave(addend), sight.sample)

        def cross_attention(h: torch.Tensor) -> torch.Tensor:
            addend = self.attend_across(self.stream.enter(h), carry)
            return self.cross_attention_dropout(self.stream.leave(addend), sight.sample)

        def feed_forward(h: torch.Tensor) -> torch.Tensor:
            addend = self.feed_forward(self.stream.enter(h))
            return self.feed_forward_dropout(self.stream.leave(addend), sight.sample)

        x = self.residual(x, self.attention_norm, attention)
        if self.cross_attention is not None:
            x = self.residual(x, self.cross_attention_norm, cross_attention)
        return self.residual(x, self.feed_forward_norm, feed_forward)


class ParallelBlock(Block):
    """Branches side by side behind one norm, summed before the reduction."""

    def __init__(self, model: ModelSettings, context: BlockContext, flow: Flow) -> None:
        super().__init__(model, context, flow)
        self.norm = Norm(model, context.mesh.stream)
        self.dropout = build_dropout(model.dropout, context.seed, context.name, context.mesh.stream)

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> torch.Tensor:
        """The stream (B, S, D) behind the block."""

        def branches(h: torch.Tensor) -> torch.Tensor:
            entered = self.stream.enter(h)
            addend = self.attend(entered, sight) + self.feed_forward(entered)
            if self.cross_attention is not None:
                addend = addend + self.attend_across(entered, carry)
            return self.dropout(self.stream.leave(addend), sight.sample)

        return self.residual(x, self.norm, branches)


def build_block(model: ModelSettings, context: BlockContext, flow: Flow) -> Block:
    """The block that the settings name."""
    return {"serial": SerialBlock, "parallel": ParallelBlock}[model.block](model, context, flow)
