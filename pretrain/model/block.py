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
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch

from pretrain.model.attention import Attention, RotaryFactors
from pretrain.model.carry import Carry, Flow
from pretrain.model.dropout import build_dropout
from pretrain.model.feed_forward import build_feed_forward
from pretrain.model.layer import Layer
from pretrain.model.masks import Mask, Masks
from pretrain.model.moe import ExpertRow, MixtureOfExperts, Tally, add_tally
from pretrain.model.norm import Norm
from pretrain.model.positions import Rotary, positions_of
from pretrain.model.recompute import Recompute, keep
from pretrain.model.settings import ModelSettings
from pretrain.parallel.sequence import ModelMesh, SequenceSplit
from pretrain.parallel.weight_gradients import IMMEDIATE


@dataclass(frozen=True)
class Sight:
    """What the branches of a block need beside the stream."""

    mask: Mask
    rotary: RotaryFactors | None
    sample: torch.Tensor | None
    documents: torch.Tensor
    """(B, S) of the stream's own whole sequences."""


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
        documents = carry["documents"]
        mask = self.masks.causal(documents, carry["hidden"].dtype)
        factors = self.rotary.factors(carry["positions"], documents.shape[1]) if self.rotary else None
        return Sight(mask, factors, carry.get("sample"), documents)


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
        factors = None
        if self.rotary:
            factors = self.rotary.factors(self.sequence.take(positions_of(documents)), documents.shape[1])
        return Sight(mask, factors, carry.get("sample"), documents)


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
    recompute: Recompute = field(default_factory=Recompute)
    """How its parts are run."""
    experts: ExpertRow | None = None
    """Of a block with experts in place of the feed-forward layer."""


Branch = Callable[[torch.Tensor], torch.Tensor]
Fed = tuple[torch.Tensor, Tally | None]


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
        self.recompute = context.recompute
        core = self.recompute.attention
        self.attention = Attention(model, mesh, depth, seed, f"{name}.attention", core)
        self.cross_attention = None
        if self.cross_masks is not None:
            self.cross_attention = Attention(model, mesh, depth, seed, f"{name}.cross_attention", core)
        self.experts, activation = context.experts, self.recompute.activation
        if self.experts is None:
            # Tiles are there to hold little: their weights' gradients do not wait.
            own = mesh if self.recompute.feed_forward is keep else replace(mesh, weight_gradients=IMMEDIATE)
            self.feed_forward = build_feed_forward(model, own, depth, activation)
        else:
            self.feed_forward = MixtureOfExperts(model, mesh, depth, name, activation)

    def forward(self, carry: Carry) -> Carry:
        """Replaces `hidden` (B, S, D)."""
        # Tensors one by one, so that whoever keeps them sees them; masks and rotary factors are made again with the rest.
        names = tuple(name for name in carry if name in self.flow.reads)
        hidden, tally = self.recompute.block(partial(self._from_fields, names), *(carry[name] for name in names))
        left = {} if self.experts is None or tally is None else add_tally(carry, tally, self.experts)
        return self.pass_on(carry, hidden=hidden, **left)

    def _from_fields(self, names: tuple[str, ...], *fields: torch.Tensor) -> Fed:
        carry = dict(zip(names, fields, strict=True))
        return self.transform(carry["hidden"], self.view(carry), carry)

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> Fed:
        """The stream (B, S, D) behind the block, and what its experts leave."""
        raise NotImplementedError

    def attend(self, entered: torch.Tensor, sight: Sight) -> torch.Tensor:
        """Self-attention's addend (B, C, D) of what passed `Stream.enter`."""
        return self.attention(entered, entered, sight.mask, sight.rotary, sight.sample)

    def feed(self, entered: torch.Tensor, sight: Sight) -> Fed:
        """The feed-forward layer's addend (B, C, D) of what passed `Stream.enter`, and what its experts leave."""
        if isinstance(self.feed_forward, MixtureOfExperts):
            return self.feed_forward(entered, sight.documents)
        return self.recompute.feed_forward(self.feed_forward, entered), None

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

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> Fed:
        """The stream (B, S, D) behind the block, and what its experts leave."""

        def attention(h: torch.Tensor) -> torch.Tensor:
            addend = self.attend(self.stream.enter(h), sight)
            return self.attention_dropout(self.stream.leave(addend), sight.sample)

        def cross_attention(h: torch.Tensor) -> torch.Tensor:
            addend = self.attend_across(self.stream.enter(h), carry)
            return self.cross_attention_dropout(self.stream.leave(addend), sight.sample)

        tally: Tally | None = None

        def feed_forward(h: torch.Tensor) -> torch.Tensor:
            nonlocal tally
            addend, tally = self.feed(self.stream.enter(h), sight)
            return self.feed_forward_dropout(self.stream.leave(addend), sight.sample)

        x = self.residual(x, self.attention_norm, attention)
        if self.cross_attention is not None:
            x = self.residual(x, self.cross_attention_norm, cross_attention)
        return self.residual(x, self.feed_forward_norm, feed_forward), tally


class ParallelBlock(Block):
    """Branches side by side behind one norm, summed before the reduction."""

    def __init__(self, model: ModelSettings, context: BlockContext, flow: Flow) -> None:
        super().__init__(model, context, flow)
        self.norm = Norm(model, context.mesh.stream)
        self.dropout = build_dropout(model.dropout, context.seed, context.name, context.mesh.stream)

    def transform(self, x: torch.Tensor, sight: Sight, carry: Carry) -> Fed:
        """The stream (B, S, D) behind the block, and what its experts leave."""

        tally: Tally | None = None

        def branches(h: torch.Tensor) -> torch.Tensor:
            nonlocal tally
            entered = self.stream.enter(h)
            fed, tally = self.feed(entered, sight)
            addend = self.attend(entered, sight) + fed
            if self.cross_attention is not None:
                addend = addend + self.attend_across(entered, carry)
            return self.dropout(self.stream.leave(addend), sight.sample)

        return self.residual(x, self.norm, branches), tally


def build_block(model: ModelSettings, context: BlockContext, flow: Flow) -> Block:
    """The block that the settings name."""
    return {"serial": SerialBlock, "parallel": ParallelBlock}[model.block](model, context, flow)
