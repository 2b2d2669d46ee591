"""MicroBatch: what one rank takes through the model at once."""

from dataclasses import dataclass

import torch

IGNORED = -100
"""Label of a position that is not a target: padding, or the first token of the next document."""


@dataclass(frozen=True)
class RowSources:
    """Which source of the data each of B sequences is from."""

    numbers: torch.Tensor
    """(B,) int64 below `count`."""
    count: int
    """Sources of the data, the same in every batch."""


@dataclass(frozen=True)
class MicroBatch:
    """Integer tensors of B sequences of S tokens."""

    inputs: dict[str, torch.Tensor]
    """Fields of the carry (pretrain.model.carry) that the model starts from. Causal: tokens, positions, documents (B, S) and
    sample (B,). Seq2seq: source_tokens, source_documents (B, S_source) as well. All int64."""
    labels: torch.Tensor
    """(B, S) int64: the token to predict at each position, or IGNORED."""
    sources: RowSources | None = None
    """Losses are told by them; None: of one source, or not told apart. The model does not see them."""

    @property
    def targets(self) -> int:
        """Number of positions with a label."""
        return int((self.labels != IGNORED).sum())
