"""Ulysses: ranks that share a sequence exchange positions for heads around attention (Jacobs et al. 2023, DeepSpeed Ulysses).

DeepSpeed's DistributedAttention makes the exchange; the layers have it from `ModelMesh.exchange`. Gone round of it:
`sequence_parallel_size` of its config, which is silently wrong (a loss was off by 0.16): the ranks lie in the data axis here; and
heads that do not divide by the ranks, for which it asks a module global for its rank. Here they always divide: key-value heads
that are fewer are repeated, and a number of query heads that does not is refused by `pretrain.rules`.

Cost: four all-to-alls forward (queries, keys, values, mixed values) and four backward; a rank sends all but 1/ulysses of its
(B, C, H/tp, K) in each.
"""

import math

import torch
from deepspeed.sequence.layer import DistributedAttention

from pretrain.parallel.mesh import Axis
from pretrain.parallel.sequence import LocalAttention

_POSITIONS, _HEADS = 1, 2
"""Dims of (B, C, H, K)."""


class HeadExchange:
    """Makes attention over whole sequences and some heads into one over parts of sequences and all heads of a tensor rank."""

    def __init__(self, axis: Axis) -> None:
        assert axis.group is not None, "an exchange is among ranks"
        self._size, self._group = axis.size, axis.group

    def __call__(self, attention: LocalAttention) -> LocalAttention:
        """Attention of (B, C, H, K) queries, (B, C', G, K) keys and values, to (B, C, H, K)."""
        exchange = DistributedAttention(attention, self._group, scatter_idx=_HEADS, gather_idx=_POSITIONS)  # pyright: ignore[reportArgumentType]

        def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object) -> torch.Tensor:
            repeats = math.lcm(key.shape[_HEADS], self._size) // key.shape[_HEADS]
            if repeats > 1:  # consecutive query heads use one key-value head, so a copy goes to each rank that has some
                key, value = (heads.repeat_interleave(repeats, _HEADS) for heads in (key, value))
            return exchange(query, key, value, 0, None, *rest)

        return attend
