"""Multi-head, multi-query and grouped-query attention, over one stream or from one to another.

Legend: B sequences, S query positions and T key positions of the context rank, D width of the stream, H query heads, G key-value
heads, K width of a head, tp size of the model axis.

What lies between the projections is a `Mixer` (dot_product.py, ring_attention.py), perhaps within an exchange of positions for
heads (`ModelMesh.exchange`): there alone positions meet each other.

Heads are split over the model axis: query by rows, output by columns. Key-value heads are split too where they divide by it;
else they are computed whole on every rank (multi-query attention with tp > 1), and each rank takes those its queries use.
Their gradient is then summed over the ranks behind the projection (`copy_to_axis` on its output), so that the weight's is whole
and equal everywhere; the input's is whole too and must count once (`gradient_once`), for `Stream.enter` sums it over the ranks.

Vaswani et al. 2017, section 3.2; Shazeer 2019 (multi-query); Ainslie et al. 2023 (grouped-query).
"""

from functools import partial

import torch
from torch import nn

from pretrain.model.dot_product import Mixer
from pretrain.model.dropout import HeadDropout
from pretrain.model.initialization import ONES, ZEROS, matrix_distribution, residual_distribution
from pretrain.model.masks import Mask
from pretrain.model.norm import rms_norm
from pretrain.model.positions import Rotary
from pretrain.model.recompute import Runner, keep
from pretrain.model.ring_attention import build_mixer
from pretrain.model.settings import ModelSettings
from pretrain.parallel.collectives import copy_to_axis, gradient_once
from pretrain.parallel.linear import ColumnParallelLinear, ReplicatedLinear, RowParallelLinear, new_parameter
from pretrain.parallel.mesh import Axis
from pretrain.parallel.sequence import ModelMesh

RotaryFactors = tuple[torch.Tensor, torch.Tensor]


class HeadNorm(nn.Module):
    """An RMSNorm of each head's queries or keys, with one weight for all heads (Qwen3; Henry et al. 2020, Query-key
    normalization, for the idea).

    Where heads are split over the model axis each rank has the weight's gradient of its own: `copy_to_axis` sums them. So it
    does where key-value heads are replicated, for it stands behind the choice of those that the rank's queries use, whose
    gradients are addends too.
    """

    def __init__(self, head_dim: int, epsilon: float, axis: Axis) -> None:
        super().__init__()
        self.weight = new_parameter((head_dim,), ONES)
        self.epsilon, self.axis = epsilon, axis

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        """(B, S, H', K) to the same."""
        return rms_norm(heads, copy_to_axis(self.weight, self.axis), None, self.epsilon)


class Attention(nn.Module):
    """Queries of one stream to keys and values of it or of another."""

    def __init__(
        self, model: ModelSettings, mesh: ModelMesh, num_layers: int, seed: int, name: str, core: Runner = keep
    ) -> None:
        """Args are the model, its mesh, the blocks of the stack it is in, the run's seed, the place's name, and what runs all
        that is between the projections of queries, keys and values and the end of the output's."""
        super().__init__()
        axis, gradients = mesh.model, mesh.weight_gradients
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
        self.query = ColumnParallelLinear(
            model.d_model, width, axis, weight=into, bias=bias, weight_gradients=gradients
        )
        self.replicates_kv = model.kv_heads % axis.size != 0
        if self.replicates_kv:
            self.key_value = ReplicatedLinear(
                model.d_model, 2 * kv_width, weight=into_kv, bias=bias, weight_gradients=gradients
            )
            self.kv_index = _heads_used(model, self.first_head, self.heads)
        else:
            self.key_value = ColumnParallelLinear(
                model.d_model, 2 * kv_width, axis, weight=into_kv, bias=bias, weight_gradients=gradients
            )
            self.kv_index = None
        out = residual_distribution(model, width, num_layers)
        self.output = RowParallelLinear(width, model.d_model, axis, weight=out, bias=bias, weight_gradients=gradients)
        self.query_norm = self.key_norm = None
        if model.qk_norm == "head":
            self.query_norm = HeadNorm(self.head_dim, model.norm_epsilon, axis)
            self.key_norm = HeadNorm(self.head_dim, model.norm_epsilon, axis)
        self.run_core = core
        rate = model.attention_dropout
        self.dropout = HeadDropout(rate, seed, f"{name}.probabilities", mesh.stream) if rate > 0 else None
        # Where positions are exchanged for heads, a rank sees its part of those of the model axis.
        ulysses = mesh.sequence.ulysses
        first_head = self.first_head + self.heads // ulysses.size * ulysses.rank
        self.mix: Mixer = mesh.exchange(build_mixer(mesh.sequence.ring, self.dropout, first_head))

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
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        if rotary is not None:
            query, key = Rotary.rotate(query, rotary), Rotary.rotate(key, rotary)
        return self.run_core(partial(self._core, mask, sample), query, key, value)

    def _core(
        self, mask: Mask, sample: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        """(B, S, H/tp, K), twice (B, T, G', K) to (B, S, D)."""
        return self.output(self.mix(query, key, value, mask, sample).flatten(2))

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


def _heads_used(model: ModelSettings, first_head: int, heads: int) -> slice | list[int]:
    """Key-value heads for a rank's query heads: a range where each of them serves equally many, else one for each query."""
    group = model.num_heads // model.kv_heads
    used = [head // group for head in range(first_head, first_head + heads)]
    distinct = used[-1] - used[0] + 1
    if heads % distinct == 0 and used == [used[0] + i * distinct // heads for i in range(heads)]:
        return slice(used[0], used[-1] + 1)
    return used
