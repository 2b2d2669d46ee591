"""The independent reference of parity: a plain transformer and a plain training loop, in float64, on one device.

Written from the papers and from what ModelSettings says of them. It imports nothing of the system but settings: no layer, no
loss, no engine, no schedule, so that a mistake there cannot be made twice. Weights are a dict by global name; a name that the
model does not use, or lacks, is an error. float64, because then every deviation is the system's: the reference's own rounding
is nine orders below the bounds.

Legend: B sequences, S target positions, T source positions (T = S in self-attention), D d_model, H query heads,
G key-value heads, K head_dim, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.engine.settings import LossSettings
from pretrain.model.settings import ModelSettings
from pretrain.optim.settings import OptimizerSettings, ScheduleSettings

IGNORED = -100
Weights = Mapping[str, Tensor]
Batch = Mapping[str, Tensor]
"""Fields of the model's inputs and `labels`, each with all B sequences of a step."""
Dropout = Callable[[str, float, Tensor, tuple[int, ...]], Tensor]
"""(name of the place, rate, sample numbers (B,), shape of the activation) -> factors of that shape: 0 where it is dropped."""


@dataclass(frozen=True)
class ReferenceStep:
    """What one step of the loop gave."""

    loss: float
    objective: float
    z_loss: float
    grad_norm: float
    lr: float
    targets: int


@dataclass(frozen=True)
class ReferenceRun:
    """The trace of a run: float64, by global name."""

    steps: list[ReferenceStep]
    first_gradients: dict[str, Tensor]
    """Of the first step, before clipping."""
    weights: list[dict[str, Tensor]]
    """After each step."""


class _Used(dict[str, Tensor]):
    """Weights that remember which of them were read."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.read: set[str] = set()

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
        used = _Used(weights)
        encoder_decoder = self.settings.architecture == "encoder_decoder"
        logits = self._encoder_decoder(used, batch) if encoder_decoder else self._decoder(used, batch)
        unused = set(weights) - used.read
        assert not unused, f"parameters that the papers' model does not have: {sorted(unused)}"
        return logits

    def _decoder(self, w: Weights, batch: Batch) -> Tensor:
        samples, documents = batch["sample"], batch["documents"]
        x = self._embed(w, "", w["embedding.weight"], batch["tokens"], batch["positions"], samples)
        causal = torch.ones(documents.shape[1], documents.shape[1], dtype=torch.bool).tril()
        mask = causal & _same(documents, documents)
        for i in range(self.settings.num_layers):
            x = self._block(w, f"layers.{i}", x, mask, batch["positions"], samples)
        if self.settings.norm_position == "pre":
            x = self._norm(w, "final_norm", x)
        tied = self.settings.embeddings == "tied"
        return self._head(x, w["embedding.weight"] if tied else w["head.weight"])

    def _encoder_decoder(self, w: Weights, batch: Batch) -> Tensor:
        model, tied = self.settings, self.settings.embeddings == "tied"
        source_documents, documents, samples = batch["source_documents"], batch["documents"], batch["sample"]
        embedding = w["encoder.embedding.weight"]
        source_positions = _restarting(source_documents)
        memory = self._embed(w, "encoder.", embedding, batch["source_tokens"], source_positions, samples)
        encoder_mask = _same(source_documents, source_documents)
        for i in range(model.num_encoder_layers):
            memory = self._block(w, f"encoder.layers.{i}", memory, encoder_mask, source_positions, samples)
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
            x = self._block(w, f"decoder.layers.{i}", x, mask, batch["positions"], samples, cross)
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
        w: Weights,
        name: str,
        x: Tensor,
        mask: Tensor,
        positions: Tensor,
        samples: Tensor,
        cross: "_Cross | None" = None,
    ) -> Tensor:
        """One block, (B, S, D) to (B, S, D)."""
        model = self.settings

        def self_attention(y: Tensor) -> Tensor:
            return self._attention(w, f"{name}.attention", y, y, mask, positions, positions, samples)

        def feed_forward(y: Tensor) -> Tensor:
            return self._feed_forward(w, f"{name}.feed_forward", y)

        if model.block == "parallel":  # PaLM, section 2: y = x + MLP(norm(x)) + Attention(norm(x))
            normed = self._norm(w, f"{name}.norm", x)
            return x + self._drop(self_attention(normed) + feed_forward(normed), name, model.dropout, samples)

        sublayers: list[tuple[str, Callable[[Tensor], Tensor]]] = [("attention", self_attention)]
        if cross is not None:

            def cross_attention(y: Tensor) -> Tensor:
                part = f"{name}.cross_attention"
                return self._attention(w, part, y, cross.memory, cross.mask, positions, cross.positions, samples)

            sublayers.append(("cross_attention", cross_attention))
        sublayers.append(("feed_forward", feed_forward))
        for part, sublayer in sublayers:
            norm = f"{name}.{part}_norm"
            if model.norm_position == "pre":
                branch = sublayer(self._norm(w, norm, x))
                x = x + self._drop(branch, f"{name}.{part}", model.dropout, samples)
            else:  # Vaswani et al. 2017, section 3.1: LayerNorm(x + Sublayer(x))
                branch = self._drop(sublayer(x), f"{name}.{part}", model.dropout, samples)
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
        activation = self.settings.activation
        inner = self._linear(w, f"{name}.up", x, "feed_forward")  # (B, S, d_ff)
        if activation == "relu":
            inner = inner.clamp_min(0)
        elif activation == "gelu":  # Hendrycks and Gimpel 2016: x times the normal distribution function
            inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        elif activation == "gelu_tanh":
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        else:  # Shazeer 2020: (Swish(x W) * x V) W2
            gate = self._linear(w, f"{name}.gate", x, "feed_forward")
            inner = gate * torch.sigmoid(gate) * inner
        return self._linear(w, f"{name}.down", inner, "feed_forward")

    def _linear(self, w: Weights, name: str, x: Tensor, part: str) -> Tensor:
        y = x @ w[f"{name}.weight"].T
        return y + w[f"{name}.bias"] if part in self.settings.biases else y

    def _norm(self, w: Weights, name: str, x: Tensor) -> Tensor:
        """Ba et al. 2016; Zhang and Sennrich 2019 (no mean, no bias)."""
        model = self.settings
        if model.norm == "rmsnorm":
            return x / (x.square().mean(-1, keepdim=True) + model.norm_epsilon).sqrt() * w[f"{name}.weight"]
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + model.norm_epsilon).sqrt() * w[f"{name}.weight"]
        return y + w[f"{name}.bias"] if "norm" in model.biases else y

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


def token_losses(logits: Tensor, labels: Tensor, loss: LossSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over valid targets: cross-entropy, objective without z-loss, z-loss. Szegedy et al. 2016; PaLM, section 5."""
    valid = labels != IGNORED
    logits, labels = logits[valid], labels[valid]  # (N, V), (N,)
    log_z = logits.exp().sum(-1).log()
    cross_entropy = log_z - logits.gather(-1, labels[:, None]).squeeze(-1)
    uniform = log_z - logits.mean(-1)
    smoothed = (1 - loss.label_smoothing) * cross_entropy + loss.label_smoothing * uniform
    return cross_entropy.sum(), smoothed.sum(), loss.z_loss * log_z.square().sum()


def learning_rate(step: int, schedule: ScheduleSettings, peak: float, *, total_steps: int, d_model: int) -> float:
    """Of the step with this number, counted from 1 as in the papers."""
    if schedule.name == "noam":
        return peak * d_model**-0.5 * min(step**-0.5, step * schedule.warmup_steps**-1.5)
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    end = schedule.decay_steps or total_steps
    progress = min(1.0, (step - schedule.warmup_steps) / (end - schedule.warmup_steps))
    shape = 1 - progress if schedule.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)


def train(
    model: ReferenceModel,
    weights: Weights,
    batches: Sequence[Batch],
    *,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    total_steps: int,
) -> ReferenceRun:
    """Trains on one global batch a step: the mean over its valid targets, clipping to the global norm, AdamW."""
    parameters = {name: weight.double().clone().requires_grad_() for name, weight in weights.items()}
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": optimizer.weight_decay},
            {"params": [p for p in parameters.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=optimizer.betas,
        eps=optimizer.epsilon,
    )
    steps: list[ReferenceStep] = []
    first_gradients: dict[str, Tensor] = {}
    trace: list[dict[str, Tensor]] = []
    for number, batch in enumerate(batches, start=1):
        lr = learning_rate(number, schedule, optimizer.peak_lr, total_steps=total_steps, d_model=model.settings.d_model)
        cross_entropy, smoothed, z_loss = token_losses(model.logits(parameters, batch), batch["labels"], loss)
        targets = int((batch["labels"] != IGNORED).sum())
        adamw.zero_grad()
        ((smoothed + z_loss) / targets).backward()
        gradients = {name: _gradient(name, p) for name, p in parameters.items()}
        if not first_gradients:
            first_gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        if optimizer.clip_norm is not None and norm > optimizer.clip_norm:
            for gradient in gradients.values():
                gradient.mul_(optimizer.clip_norm / norm)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
        trace.append({name: p.detach().clone() for name, p in parameters.items()})
        sums = [float(value.detach()) / targets for value in (cross_entropy, smoothed + z_loss, z_loss)]
        steps.append(ReferenceStep(*sums, grad_norm=norm, lr=lr, targets=targets))
    return ReferenceRun(steps, first_gradients, trace)


def _gradient(name: str, parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, f"{name} has no gradient"
    return parameter.grad
