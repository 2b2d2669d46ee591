"""Multi-head, multi-query and grouped-query attention, over one stream or from one to another.

Legend: B sequences, S query positions, T key positions, D width of the stream, H query heads, G key-value heads, K width of a
head, tp size of the model axis.

Heads are split over the model axis: query by rows, output by columns. Key-value heads are split too where they divide by it;
else they are computed whole on every rank (multi-query attention with tp > 1), and each rank takes those its queries use.
Their gradient is then summed over the ranks behind the projection (`copy_to_axis` on its output), so that the weight's is whole
and equal everywhere; the input's is whole too and must count once (`gradient_once`), for `Stream.enter` sums it over the ranks.

Vaswani et al. 2017, section 3.2; Shazeer 2019 (multi-query); Ainslie et al. 2023 (grouped-query).
"""

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.dropout import HeadDropout
from pretrain.model.initialization import ZEROS, matrix_distribution, residual_distribution
from pretrain.model.masks import Mask
from pretrain.model.positions import Rotary
from pretrain.model.settings import ModelSettings
from pretrain.parallel.collectives import copy_to_axis, gradient_once
from pretrain.parallel.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear
from pretrain.parallel.sequence import ModelMesh

RotaryFactors = tuple[torch.Tensor, torch.Tensor]


class Attention(nn.Module):
    """Queries of one stream to keys and values of it or of another."""

    def __init__(self, model: ModelSettings, mesh: ModelMesh, num_layers: int, seed: int, name: str) -> None:
        """Args are the model, its mesh, the blocks of the stack it is in, the run's seed and the place's name."""
        super().__init__()
        axis = mesh.model
        assert model.num_heads % axis.size == 0, f"{model.num_heads} heads over {axis.size} ranks"
        assert model.num_heads % model.kv_heads == 0, f"{model.num_heads} heads over {model.kv_heads} key-value heads"
        self.axis = axis
        self.head_dim = model.width_of_head
        self.heads = model.num_heads // axis.size
        self.first_head = self.heads * axis.rank
        width, kv_width = model.num_heads * self.head_dim, model.kv_heads * self.head_dim
        bias = ZEROS if "attention" in model.biases else None
        into = matrix_distribution(model, model.d_model, width)
        into_kv = matrix_distribution(model, model.d_model, kv_width)
        self.query = ColumnParallelLinear(model.d_model, width, axis, weight=into, bias=bias)
        self.replicates_kv = model.kv_heads % axis.size != 0
        if self.replicates_kv:
            self.key_value = ReplicatedLinear(model.d_model, 2 * kv_width, weight=into_kv, bias=bias)
            self.kv_index = _heads_used(model, self.first_head, self.heads)
        else:
            self.key_value = ColumnParallelLinear(model.d_model, 2 * kv_width, axis, weight=into_kv, bias=bias)
            self.kv_index = None
        out = residual_distribution(model, width, num_layers)
        self.output = RowParallelLinear(width, model.d_model, axis, weight=out, bias=bias)
        rate = model.attention_dropout
        self.dropout = HeadDropout(rate, seed, f"{name}.probabilities", mesh.stream) if rate > 0 else None

    def forward(
        self,
        queries_of: torch.Tensor,
        keys_of: torch.Tensor,
        mask: Mask,
        rotary: RotaryFactors | None = None,
        sample: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attends, and projects back to the stream.

        Args:
            queries_of: (B, S, D), past `Stream.enter`.
            keys_of: (B, T, D), past `Stream.enter`.
            mask: which keys a query sees.
            rotary: of self-attention with rotary positions.
            sample: (B,) sample numbers, where probabilities are dropped.

        Returns:
            (B, S, D), this rank's addend: it has yet to pass `Stream.leave`.
        """
        query = self.query(queries_of).unflatten(-1, (self.heads, self.head_dim))  # (B, S, H/tp, K)
        key, value = self._keys_values(keys_of)  # (B, T, G', K)
        if rotary is not None:
            query, key = Rotary.rotate(query, rotary), Rotary.rotate(key, rotary)
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        if self.dropout is not None and self.training:
            mixed = self._attend_with_dropout(query, key, value, mask, sample)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, mask.additive, is_causal=mask.causal, enable_gqa=key.shape[1] != self.heads
            )
        return self.output(mixed.transpose(1, 2).flatten(2))  # (B, S, H/tp * K) to (B, S, D)

    def _keys_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each (B, T, G', K), G' the key-value heads that this rank's queries use, in their order."""
        if not self.replicates_kv:
            both = self.key_value(source)
        else:
            both = copy_to_axis(self.key_value(gradient_once(source, self.axis)), self.axis)
        both = both.unflatten(-1, (-1, 2, self.head_dim))  # (B, T, G, 2, K)
        if self.kv_index is not None:
            both = both[:, :, self.kv_index]
        key, value = both.unbind(3)
        return key, value

    def _attend_with_dropout(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, sample: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention in the open, (B, H/tp, S, K): a fused kernel would draw its own, layout-bound mask."""
        assert self.dropout is not None
        if key.shape[1] != self.heads:
            repeats = self.heads // key.shape[1]
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        scores = query @ key.transpose(-2, -1) * self.head_dim**-0.5  # (B, H/tp, S, T)
        if mask.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
            scores = scores.masked_fill(later, float("-inf"))
        elif mask.additive is not None:
            scores = scores + mask.additive
        probabilities = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        return self.dropout.probabilities(probabilities, sample, self.first_head) @ value


def _heads_used(model: ModelSettings, first_head: int, heads: int) -> slice | list[int]:
    """Key-value heads for a rank's query heads: a range where each of them serves equally many, else one for each query."""
    group = model.num_heads // model.kv_heads
    used = [head // group for head in range(first_head, first_head + heads)]
    distinct = used[-1] - used[0] + 1
    if heads % distinct == 0 and used == [used[0] + i * distinct // heads for i in range(heads)]:
        return slice(used[0], used[-1] + 1)
    return used
