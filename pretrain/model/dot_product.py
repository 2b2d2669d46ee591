"""Scaled dot-product attention of queries, keys and values that lie whole on a rank (Vaswani et al. 2017, section 3.2.1).

Legend: B sequences, S query positions, T key positions, K width of a head; H query heads and G key-value heads of the rank, which
under tensor parallelism and Ulysses are some of the model's. `ring_attention.py` is the same over ranks that hold other keys.
"""

from typing import Protocol

import torch
from torch.nn import functional as F

from pretrain.model.dropout import HeadDropout
from pretrain.model.masks import Mask


class Mixer(Protocol):
    """What lies between the projections: queries, keys and values to the values that each query sees."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, sample: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, S, H, K), twice (B, T, G, K) to (B, S, H, K); sample (B,) where probabilities are dropped."""
        ...


class DotProduct:
    """All keys that a query sees are here."""

    def __init__(self, dropout: HeadDropout | None, first_head: int) -> None:
        """Args are what drops probabilities, and the model's number of the first head that is seen here."""
        self.dropout, self.first_head = dropout, first_head

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, sample: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Mixer`."""
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if self.dropout is not None and self.dropout.training:
            return self._in_the_open(self.dropout, query, key, value, mask, sample).transpose(1, 2)
        grouped = key.shape[1] != query.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, mask.additive, is_causal=mask.causal, enable_gqa=grouped
        ).transpose(1, 2)

    def _in_the_open(
        self,
        dropout: HeadDropout,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Mask,
        sample: torch.Tensor | None,
    ) -> torch.Tensor:
        """(B, H, S, K): a fused kernel would draw its own, layout-bound mask."""
        if key.shape[1] != query.shape[1]:
            repeats = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # (B, H, S, T)
        if mask.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
            scores = scores.masked_fill(later, float("-inf"))
        elif mask.additive is not None:
            scores = scores + mask.additive
        probabilities = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return dropout.probabilities(probabilities, sample, self.first_head) @ value
