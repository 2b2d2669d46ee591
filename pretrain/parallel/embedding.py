"""A vocabulary whose rows are split over the model axis: embedding of tokens, and the projection to logits.

Each rank holds V/tp rows, rounded up; what lies past the vocabulary is padding that exists in memory alone (`Shard.lengths`
says how much is real). A token's row is found by one rank and summed with the zeros of the others. Logits stay split: the loss
reads them where they are (cross_entropy.py), so (B, S, V) never exists (Shoeybi et al. 2019, section 3).
"""

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.parallel.linear import new_parameter
from pretrain.parallel.mesh import Axis
from pretrain.parallel.random import Distribution
from pretrain.parallel.shard import shard_of
from pretrain.parallel.weight_gradients import IMMEDIATE, WeightGradients


class VocabularyTable(nn.Module):
    """One weight (V/tp, D), for embedding, for logits, or for both where they are tied."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        axis: Axis,
        *,
        weight: Distribution,
        weight_gradients: WeightGradients = IMMEDIATE,
    ) -> None:
        super().__init__()
        self.weight_gradients = weight_gradients
        self.axis = axis
        self.weight = new_parameter((vocab_size, d_model), weight, {0: axis})
        shard = shard_of(self.weight)
        self.first, self.real = shard.starts[0], shard.lengths[0]

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, S) ids to this rank's addend of (B, S, D); it has yet to pass `Stream.leave`."""
        if self.axis.size == 1:
            return F.embedding(tokens, self.weight)
        local = tokens - self.first
        foreign = (local < 0) | (local >= self.real)
        rows = F.embedding(local.masked_fill(foreign, 0), self.weight)
        return rows.masked_fill(foreign.unsqueeze(-1), 0.0)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, S, D), past `Stream.enter`, to (B, S, V/tp); the loss leaves out the columns past the real ones."""
        return self.weight_gradients.linear(hidden, self.weight)
