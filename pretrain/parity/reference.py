"""The independent reference of parity: a plain transformer, in float64, on one device; the plain training loop is beside it.

Written from the papers and from what ModelSettings says of them. It imports nothing of the system but settings: no layer, no
loss, no engine, no schedule, so that a mistake there cannot be made twice. Weights are a dict by global name; a name that the
model does not use, or lacks, is an error. float64, because then every deviation is the system's: the reference's own rounding
is nine orders below the bounds.

Legend: B sequences, S target positions, T source positions (T = S in self-attention), D d_model, H query heads,
G key-value heads, K head_dim, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.settings import ModelSettings
from pretrain.parity.reference_experts import Routing, mix_experts

Weights = Mapping[str, Tensor]
Batch = Mapping[str, Tensor]
"""Fields of the model's inputs and `labels`, each with all B sequences of a step."""
Dropout = Callable[[str, float, Tensor, tuple[int, ...]], Tensor]
"""(name of the place, rate, sample numbers (B,), shape of the activation) -> factors of that shape: 0 where it is dropped."""


@dataclass(frozen=True)
class Forward:
    """What the model makes of a batch."""

    logits: Tensor
    """(B, S, V)."""
    auxiliary: Tensor
    """(B,): what the experts of all layers add to the objective of each sequence; zeros for a dense model."""
    loads: dict[str, Tensor]
    """By the global name of a layer of experts: (E,) choices that fell on each expert, over all sequences."""
    margin: float
    """Least margin of those choices; inf without experts."""


class _Used(dict[str, Tensor]):
    """Weights that remember which of them were read, and what the layers of experts did on the way."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.read: set[str] = set()
        self.routings: dict[str, Routing] = {}

    def __getitem__(self, name: str) -> Tensor:
        self.read.add(name)
        return super().__getitem__(name)


@dataclass(frozen=True)
class ReferenceModel:
    """The forward pass as a function of weights and a batch."""

    settings: ModelSettings
    dropout: Dropout

    def logits(self, weights: Weights, batch: Batch) -> Tensor:
        """(B, S, V)."""
        return self.forward(weights, batch).logits

    def forward(self, weights: Weights, batch: Batch) -> Forward:
        """Logits of all positions, and what the experts add to the objective."""
        used = _Used(weights)
        encoder_decoder = self.settings.architecture == "encoder_decoder"
        logits = self._encoder_decoder(used, batch) if encoder_decoder else self._decoder(used, batch)
        unused = set(weights) - used.read
        assert not unused, f"parameters that the papers' model does not have: {sorted(unused)}"
        auxiliary = sum((r.auxiliary for r in used.routings.values()), logits.new_zeros(len(logits)))
        margin = min((r.margin for r in used.routings.values()), default=math.inf)
        return Forward(logits, auxiliary, {name: r.load for name, r in used.routings.items()}, margin)

    def _decoder(self, w: _Used, batch: Batch) -> Tensor:
        samples, documents = batch["sample"], batch["documents"]
        x = self._embed(w, "", w["embedding.weight"], batch["tokens"], batch["positions"], samples)
        causal = torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool).tril()
        mask = causal & _same(documents, documents)
        for i in range(self.settings.num_layers):
            x = self._block(w, f"layers.{i}", x, mask, documents, batch["positions"], samples)
        if self.settings.norm_position == "pre":
            x = self._norm(w, "final_norm", x)
        tied = self.settings.embeddings == "tied"
        return self._head(x, w["embedding.weight"] if tied else w["head.weight"])

    def _encoder_decoder(self, w: _Used, batch: Batch) -> Tensor:
        model, tied = self.settings, self.settings.embeddings == "tied"
        source_documents, documents, samples = batch["source_documents"], batch["documents"], batch["sample"]
        embedding = w["encoder.embedding.weight"]
        source_positions = _restarting(source_documents)
        memory = self._embed(w, "encoder.", embedding, batch["source_tokens"], source_positions, samples)
        encoder_mask = _same(source_documents, source_documents)
        for i in range(model.num_encoder_layers):
            memory = self._block(
                w, f"encoder.layers.{i}", memory, encoder_mask, source_documents, source_positions, samples
            )
        if model.norm_position == "pre":
            memory = self._norm(w, "encoder.final_norm", memory)

        target_embedding = embedding if tied else w["decoder.embedding.weight"]
        x = self._embed(w, "decoder.", target_embedding, batch["tokens"], batch["positions"], samples)
        causal = torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool).tril()
        mask = causal & _same(documents, documents)
        is_source = (source_documents >= 0)[:, None, :]  # (B, 1, T)
        is_padding = (documents < 0)[:, :, None]  # (B, S, 1)
        cross_mask = is_source & (_same(documents, source_documents) | is_padding)
        # Nothing reads what padding attends to, but it must stay finite where a row holds no source at all.
        cross_mask = cross_mask | ~cross_mask.any(-1, keepdim=True)
        cross = _Cross(memory, cross_mask, source_positions)
        for i in range(model.num_layers):
            x = self._block(w, f"decoder.layers.{i}", x, mask, documents, batch["positions"], samples, cross)
        if model.norm_position == "pre":
            x = self._norm(w, "decoder.final_norm", x)
        return self._head(x, embedding if tied else w["head.weight"])

    def _embed(
        self, w: Weights, prefix: str, embedding: Tensor, tokens: Tensor, positions: Tensor, samples: Tensor
    ) -> Tensor:
        """(B, S, D): token embeddings with positions, Vaswani et al. 2017, sections 3.4, 3.5 and 5.4."""
        model = self.settings
        x = embedding[tokens]
        if model.embedding_scale == "sqrt_d_model":
            x = x * math.sqrt(model.d_model)
        if model.positions == "learned":
            x = x + w[f"{prefix}positions.weight"][positions]
        if model.positions == "sinusoidal":
            x = x + _sinusoids(positions, model.d_model)
        return self._drop(x, f"{prefix}positions", model.dropout, samples)

    def _block(
        self,
        w: _Used,
        name: str,
        x: Tensor,
        mask: Tensor,
        documents: Tensor,
        positions: Tensor,
        samples: Tensor,
        cross: "_Cross | None" = None,
    ) -> Tensor:
        """One block, (B, S, D) to (B, S, D)."""
        model = self.settings

        def self_attention(y: Tensor) -> Tensor:
            return self._attention(w, f"{name}.attention", y, y, mask, positions, positions, samples)

        def feed_forward(y: Tensor) -> Tensor:
            experts = model.moe
            if experts is not None and int(name.rpartition(".")[2]) >= experts.first_dense_layers:
                return self._experts(w, f"{name}.feed_forward", y, documents)
            return self._feed_forward(w, f"{name}.feed_forward", y)

        sublayers: list[tuple[str, Callable[[Tensor], Tensor]]] = [("attention", self_attention)]
        if cross is not None:

            def cross_attention(y: Tensor) -> Tensor:
                part = f"{name}.cross_attention"
                return self._attention(w, part, y, cross.memory, cross.mask, positions, cross.positions, samples)

            sublayers.append(("cross_attention", cross_attention))
        sublayers.append(("feed_forward", feed_forward))
        if model.block == "parallel":  # PaLM, section 2: y = x + MLP(norm(x)) + Attention(norm(x))
            branches = tuple(sublayer for _, sublayer in sublayers)
            sublayers = [("", lambda y: sum((branch(y) for branch in branches), torch.zeros_like(y)))]
        for part, sublayer in sublayers:
            place, norm = (f"{name}.{part}", f"{name}.{part}_norm") if part else (name, f"{name}.norm")
            if model.norm_position == "pre":
                branch = sublayer(self._norm(w, norm, x))
                x = x + self._drop(branch, place, model.dropout, samples)
            else:  # Vaswani et al. 2017, section 3.1: LayerNorm(x + Sublayer(x))
                branch = self._drop(sublayer(x), place, model.dropout, samples)
                x = self._norm(w, norm, x + branch)
        return x

    def _attention(
        self,
        w: Weights,
        name: str,
        x: Tensor,
        memory: Tensor,
        mask: Tensor,
        positions: Tensor,
        memory_positions: Tensor,
        samples: Tensor,
    ) -> Tensor:
        """softmax(q k^T / sqrt(K)) v, (B, S, D), (B, T, D) to (B, S, D); mask (B, S, T), True where attended."""
        model = self.settings
        heads, kv_heads = model.num_heads, model.num_kv_heads or model.num_heads
        width = model.head_dim or model.d_model // heads
        query = self._linear(w, f"{name}.query", x, "attention").unflatten(-1, (heads, width))
        key_value = self._linear(w, f"{name}.key_value", memory, "attention").unflatten(-1, (kv_heads, 2, width))
        key, value = key_value.unbind(-2)  # (B, T, G, K) each
        if model.qk_norm == "head":  # Qwen3; a gain for each feature of a head, shared by the heads
            query = self._root_mean_square(query) * w[f"{name}.query_norm.weight"]
            key = self._root_mean_square(key) * w[f"{name}.key_norm.weight"]
        if model.positions == "rotary" and not name.endswith("cross_attention"):
            query = _rotate(query, positions, model.rotary_base)
            key = _rotate(key, memory_positions, model.rotary_base)
        key, value = (part.repeat_interleave(heads // kv_heads, dim=2) for part in (key, value))  # (B, T, H, K)
        scores = torch.einsum("bshk,bthk->bhst", query, key) / math.sqrt(width)
        probabilities = scores.masked_fill(~mask[:, None], -math.inf).softmax(-1)
        probabilities = self._drop(probabilities, f"{name}.probabilities", model.attention_dropout, samples)
        attended = torch.einsum("bhst,bthk->bshk", probabilities, value).flatten(2)
        return self._linear(w, f"{name}.output", attended, "attention")

    def _feed_forward(self, w: Weights, name: str, x: Tensor) -> Tensor:
        inner = self._linear(w, f"{name}.up", x, "feed_forward")  # (B, S, d_ff)
        gate = self._linear(w, f"{name}.gate", x, "feed_forward") if self.settings.activation == "swiglu" else None
        return self._linear(w, f"{name}.down", self._activate(inner, gate), "feed_forward")

    def _experts(self, w: _Used, name: str, x: Tensor, documents: Tensor) -> Tensor:
        """A mixture of experts, and those that every token passes."""
        moe = self.settings.moe
        assert moe is not None
        mixed, routing = mix_experts(w, name, x, documents, moe, self._activate)
        w.routings[name] = routing
        return mixed + self._feed_forward(w, f"{name}.shared", x) if moe.num_shared_experts else mixed

    def _activate(self, inner: Tensor, gate: Tensor | None) -> Tensor:
        activation = self.settings.activation
        if activation == "relu":
            inner = inner.clamp_min(0)
        elif activation == "gelu":  # Hendrycks and Gimpel 2016: x times the normal distribution function
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        elif activation == "gelu_tanh":
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        else:  # Shazeer 2020: (Swish(x W) * x V) W2
            assert gate is not None
            inner = gate * torch.sigmoid(gate) * inner
        return inner

    def _linear(self, w: Weights, name: str, x: Tensor, part: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if part in self.settings.biases else y

    def _norm(self, w: Weights, name: str, x: Tensor) -> Tensor:
        """Ba et al. 2016; Zhang and Sennrich 2019 (no mean, no bias)."""
        model = self.settings
        if model.norm == "rmsnorm":
            return self._root_mean_square(x) * w[f"{name}.weight"]
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + model.norm_epsilon).sqrt() * w[f"{name}.weight"]
        return y + w[f"{name}.bias"] if "norm" in model.biases else y

    def _root_mean_square(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.settings.norm_epsilon).sqrt()

    def _head(self, x: Tensor, weight: Tensor) -> Tensor:
        scale = self.settings.d_model**-0.5 if self.settings.logit_scale == "rsqrt_d_model" else 1.0
        return x @ weight.T * scale

    def _drop(self, x: Tensor, name: str, rate: float, samples: Tensor) -> Tensor:
        return x * self.dropout(name, rate, samples, tuple(x.shape)) if rate > 0 else x


@dataclass(frozen=True)
class _Cross:
    memory: Tensor
    mask: Tensor
    positions: Tensor


def _same(a: Tensor, b: Tensor) -> Tensor:
    """(B, S), (B, T) to (B, S, T): whether two positions are of one document."""
    return a[:, :, None] == b[:, None, :]


def _restarting(documents: Tensor) -> Tensor:
    """(B, T) position of each token within its run of equal document numbers."""
    positions = torch.zeros_like(documents)
    for i in range(1, documents.shape[1]):
        goes_on = documents[:, i] == documents[:, i - 1]
        positions[:, i] = torch.where(goes_on, positions[:, i - 1] + 1, 0)
    return positions


def _sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """(B, S, D): Vaswani et al. 2017, section 3.5: even features sines, odd ones cosines."""
    rates = 10000.0 ** -(torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = positions[..., None].double() * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _rotate(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """(B, S, H, K): Su et al. 2021, section 3.2: pair i turns by position x base^(-2i/K); pairs are (i, i + K/2), GPT-NeoX."""
    rates = base ** -(torch.arange(0, x.shape[-1], 2, dtype=torch.float64) / x.shape[-1])
    turns = torch.polar(torch.ones((), dtype=torch.float64), positions[..., None].double() * rates)  # (B, S, K/2)
    first, second = x.double().chunk(2, dim=-1)
    turned = torch.complex(first, second) * turns[:, :, None]
    return torch.cat([turned.real, turned.imag], dim=-1)
