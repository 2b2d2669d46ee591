"""The layers at both ends of a model: tokens to the stream, and the stream to logits, by tables that may be one and the same.

Legend: B sequences, S target positions, T source positions, D width of the stream, V vocabulary, tp size of the model axis.

A tied table is one module with one weight that stands at several places of the list. What is done with it at a place is a
*use*, a small value; each is applied by calling the module, for ZeRO-3 gathers a weight when its module is called.
"""

from dataclasses import dataclass

import torch

from pretrain.errors import ConfigError
from pretrain.model.carry import Carry, Flow
from pretrain.model.initialization import embedding_distribution
from pretrain.model.layer import pass_on
from pretrain.model.settings import ModelSettings
from pretrain.parallel.embedding import VocabularyTable
from pretrain.parallel.sequence import ModelMesh
from pretrain.parallel.tiled_cross_entropy import tiled_cross_entropy


@dataclass(frozen=True)
class EmbedTokens:
    """Tokens to the stream."""

    flow: Flow
    field: str
    scale: float

    def __call__(self, table: "TableLayer", carry: Carry) -> Carry:
        """Adds `hidden` (B, S, D)."""
        return pass_on(carry, self.flow, hidden=self.embed(table, carry))

    def embed(self, table: "TableLayer", carry: Carry) -> torch.Tensor:
        """(B, L, D) of the stream."""
        hidden = table.stream.leave(table.embed(carry[self.field]))
        return hidden if self.scale == 1.0 else hidden * self.scale


class StartDecoder(EmbedTokens):
    """Target tokens to the stream; the encoder's stream becomes the memory."""

    def __call__(self, table: "TableLayer", carry: Carry) -> Carry:
        """Replaces `hidden` (B, T, D) by (B, S, D) and adds `memory` (B, T, D)."""
        return pass_on(carry, self.flow, hidden=self.embed(table, carry), memory=carry["hidden"])


@dataclass(frozen=True)
class ProjectToLogits:
    """The stream to logits."""

    flow: Flow
    scale: float

    def __call__(self, table: "TableLayer", carry: Carry) -> Carry:
        """Replaces `hidden` (B, S, D) by `logits` (B, S, V/tp)."""
        hidden = carry["hidden"]
        # The stream is scaled and not the logits: D is the smaller of the two widths.
        scaled = hidden if self.scale == 1.0 else hidden * self.scale
        return pass_on(carry, self.flow, logits=table.logits(table.stream.enter(scaled)))


@dataclass(frozen=True)
class LossTiles:
    """How the head makes losses itself."""

    tokens: int
    """Whose logits exist at once."""
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class ProjectToLosses:
    """The stream to losses, going through the tokens in tiles: all logits never exist at once."""

    flow: Flow
    scale: float
    tiles: LossTiles

    def __call__(self, table: "TableLayer", carry: Carry) -> Carry:
        """Replaces `hidden` (B, L, D) and `labels` (B, C) by `losses` (3, B, C), the three of `TokenLosses`."""
        hidden = carry["hidden"]
        entered = table.stream.enter(hidden if self.scale == 1.0 else hidden * self.scale)
        losses = tiled_cross_entropy(
            entered,
            table.weight,
            carry["labels"],
            table.axis,
            table.vocab_size,
            tile_tokens=self.tiles.tokens,
            label_smoothing=self.tiles.label_smoothing,
        )
        return pass_on(carry, self.flow, losses=torch.stack(losses))


TableUse = EmbedTokens | ProjectToLogits | ProjectToLosses


class TableLayer(VocabularyTable):
    """A vocabulary table in a list of layers, with the use that its first place makes of it."""

    def __init__(self, model: ModelSettings, mesh: ModelMesh, use: TableUse) -> None:
        weight = embedding_distribution(model)
        super().__init__(
            vocabulary_of(model), model.d_model, mesh.model, weight=weight, weight_gradients=mesh.weight_gradients
        )
        self.use = use
        self.stream = mesh.stream
        self.vocab_size = vocabulary_of(model)

    def forward(self, carry: Carry, use: TableUse | None = None) -> Carry:
        """The carry behind its first use, or behind the given one of a later place."""
        return (use or self.use)(self, carry)


def vocabulary_of(model: ModelSettings) -> int:
    """Tokens of the vocabulary. Raises ConfigError where the tokenizer has not told them yet."""
    if model.vocab_size is None:
        raise ConfigError("model.vocab_size is not known: set it, or prepare the data first, whose tokenizer tells it")
    return model.vocab_size
