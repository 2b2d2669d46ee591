"""Mixture of experts of the reference: one token after another, as the papers say it, in float64.

Names under a block's `feed_forward`: router.weight (E, D); router.bias (E,), a buffer, with `balance: bias`; experts.up.weight
and experts.gate.weight (E, F, D), experts.down.weight (E, D, F), with biases experts.*.bias (E, F) or (E, D) where feed-forward
layers have them; shared.* as a plain feed-forward layer of the shared experts' summed width.

Padding goes to no routed expert: it takes no place of a capacity and counts in no load or loss. The capacity itself is a share of
all S positions. Within a sequence an expert takes tokens in the order of positions.

Legend: B sequences, S positions, T of them that are not padding, D d_model, E experts, k of a token, F width of an expert.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.model.settings import MoESettings

Activate = Callable[[Tensor, Tensor | None], Tensor]
"""(up, gate or None) to what goes into `down`."""


@dataclass(frozen=True)
class Routing:
    """What one layer of experts did with a batch."""

    auxiliary: Tensor
    """(B,), coefficients included."""
    load: Tensor
    """(E,) choices that fell on each expert, dropped ones too."""
    margin: float
    """Least difference between the last chosen score and the first that was not: below rounding, the choice is a tie."""


def mix_experts(
    w: Mapping[str, Tensor], name: str, x: Tensor, documents: Tensor, moe: MoESettings, activate: Activate
) -> tuple[Tensor, Routing]:
    """(B, S, D), documents (B, S) to the routed experts' output (B, S, D), without the shared ones."""
    logits = x @ w[f"{name}.router.weight"].T  # (B, S, E)
    scores = logits.softmax(-1) if moe.score == "softmax" else torch.sigmoid(logits)
    bias = w[f"{name}.router.bias"] if moe.balance == "bias" else torch.zeros(moe.num_experts, dtype=x.dtype)
    ranked = (scores.detach() + bias).sort(stable=True, dim=-1, descending=True)
    chosen = ranked.indices[..., : moe.experts_per_token]  # (B, S, k)
    margin = math.inf
    if moe.experts_per_token < moe.num_experts:
        last, first_left = ranked.values[..., moe.experts_per_token - 1], ranked.values[..., moe.experts_per_token]
        margin = float((last - first_left).detach().min())
    mixed, auxiliary, loads = [], [], torch.zeros(moe.num_experts, dtype=torch.int64)
    for b in range(len(x)):
        real = (documents[b] >= 0).nonzero().flatten().tolist()
        mixed.append(_one_sequence(w, name, x[b], real, scores[b], chosen[b], moe, activate))
        load = torch.bincount(chosen[b][real].flatten(), minlength=moe.num_experts)
        auxiliary.append(_auxiliary(logits[b][real], scores[b][real], load, moe))
        loads += load
    return torch.stack(mixed), Routing(torch.stack(auxiliary), loads, margin)


def _one_sequence(
    w: Mapping[str, Tensor],
    name: str,
    x: Tensor,
    real: Sequence[int],
    scores: Tensor,
    chosen: Tensor,
    moe: MoESettings,
    activate: Activate,
) -> Tensor:
    """(S, D) to (S, D), token by token; an expert that has taken its capacity takes no more. `real` are not padding."""
    length, k = chosen.shape
    capacity = math.inf
    if moe.capacity_factor is not None:
        capacity = math.ceil(moe.capacity_factor * k * length / moe.num_experts)
    taken = [0] * moe.num_experts
    rows = [torch.zeros_like(x[s]) for s in range(length)]
    for s in real:
        weights = scores[s, chosen[s]]  # (k,)
        if moe.normalize_weights:
            weights = weights / weights.sum()
        for choice, expert in enumerate(chosen[s].tolist()):
            if taken[expert] < capacity:
                taken[expert] += 1
                rows[s] = rows[s] + moe.routed_scale * weights[choice] * _expert(
                    w, f"{name}.experts", expert, x[s], activate
                )
    return torch.stack(rows)


def _expert(w: Mapping[str, Tensor], name: str, expert: int, x: Tensor, activate: Activate) -> Tensor:
    """(D,) to (D,)."""

    def linear(part: str, y: Tensor) -> Tensor:
        z = w[f"{name}.{part}.weight"][expert] @ y
        return z + w[f"{name}.{part}.bias"][expert] if f"{name}.{part}.bias" in w else z

    gate = linear("gate", x) if f"{name}.gate.weight" in w else None
    return linear("down", activate(linear("up", x), gate))


def _auxiliary(logits: Tensor, scores: Tensor, load: Tensor, moe: MoESettings) -> Tensor:
    """What a sequence adds to the objective, coefficients included: (T, E) logits and scores, (E,) load, to ().

    Fedus et al. 2021, equation 4, and ST-MoE's equation 5; 0 for a sequence of padding alone.
    """
    auxiliary = torch.zeros((), dtype=logits.dtype)
    if not len(logits):
        return auxiliary
    if moe.balance == "auxiliary_loss":
        # Scores that do not sum to one are divided by their sum first (DeepSeek-V3, equation 19).
        probabilities = (scores / scores.sum(-1, keepdim=True)).mean(0)  # (E,): P
        auxiliary = auxiliary + moe.auxiliary_loss * moe.num_experts * (load / load.sum() * probabilities).sum()
    return auxiliary + moe.router_z_loss * logits.logsumexp(-1).square().mean()


def moved_bias(bias: Tensor, load: Tensor, moe: MoESettings) -> Tensor:
    """(E,) after a step: up where an expert had less than its share, down where it had more (Wang et al. 2024)."""
    return bias + moe.bias_update_rate * torch.sign(load.double().mean() - load)
