"""The router of a mixture of experts: which experts each token goes to, with what weights, and what balances them.

Legend: B sequences, S positions of the whole sequence, C of the context rank, D width of the stream, E experts, k of a token.

Logits and scores are fp32 whatever the precision: neighbours in a top-k lie close. Every rank of a tensor group routes alike.
Padding (a document number below 0) goes to no routed expert: it takes no place of a capacity and counts in no load or loss. All
that is summed over a sequence is summed over the ranks of its context group.

Loss of a sequence with T tokens that are not padding, in one layer:
    auxiliary_loss x E x sum over e of f_e P_e  (Fedus et al. 2021, equation 4, with f_e = tokens that chose e / (k T), before a
    capacity drops any, and P_e = mean over the T tokens of the score of e; sigmoid scores are first divided by their sum over
    all experts, DeepSeek-V3, equations 17 to 20)
    + router_z_loss x mean over the T tokens of (log-sum-exp of the logits) squared (Zoph et al. 2022, equation 5).
Layers are added up. A sequence of padding alone has a loss of 0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.model.initialization import matrix_distribution
from pretrain.model.settings import ModelSettings, MoESettings
from pretrain.parallel.collectives import all_reduce, gather_sequence, gradient_once
from pretrain.parallel.linear import new_parameter
from pretrain.parallel.sequence import ModelMesh, SequenceSplit, zigzag
from pretrain.parallel.shard import Shard


class Routing(NamedTuple):
    """Where the tokens of a micro-batch go. A tuple, for ZeRO-3 finds no tensor in another class."""

    choice: torch.Tensor
    """(B, C, k) int64: the experts of each token, best first."""
    kept: torch.Tensor
    """(B, C, k) bool: whether the token is sent there: no padding, and within the capacity."""
    weights: torch.Tensor
    """(B, C, k) fp32 factors of the experts' outputs."""
    auxiliary: torch.Tensor | None
    """(B,) fp32: this context rank's addend of what each sequence adds to the objective; None where nothing is added."""
    load: torch.Tensor
    """(E + 1,) int64: tokens that chose each expert, and how many of these choices were dropped."""


class Router(nn.Module):
    """Scores by one matrix, top-k choice."""

    def __init__(self, model: ModelSettings, moe: MoESettings, mesh: ModelMesh, layer: str) -> None:
        super().__init__()
        self.moe, self.axis, self.sequence = moe, mesh.model, mesh.sequence
        self.weight = new_parameter(
            (moe.num_experts, model.d_model), matrix_distribution(model, model.d_model, moe.num_experts)
        )
        # A plain tensor and no buffer: the engine would cast that to bf16, whose steps at 1 are larger than the bias's.
        self.bias: torch.Tensor | None = None
        if moe.balance == "bias":
            self.bias = torch.zeros(moe.num_experts)
        self.layer = layer
        self.bias_shard = Shard.whole((moe.num_experts,), f"{layer}.feed_forward.router.bias")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """The bias moves with the module, in its own type."""
        module = super()._apply(fn, recurse)
        if self.bias is not None:
            self.bias = self.bias.to(self.weight.device)
        return module

    def forward(self, entered: torch.Tensor, documents: torch.Tensor) -> Routing:
        """(B, C, D), past `Stream.enter`; documents (B, S) of whole sequences."""
        moe, valid = self.moe, self.sequence.take(documents) >= 0
        logits = F.linear(gradient_once(entered, self.axis).float(), self.weight.float())
        scores = logits.softmax(-1) if moe.score == "softmax" else logits.sigmoid()
        ranked = scores.detach() if self.bias is None else scores.detach() + self.bias
        choice = ranked.topk(moe.experts_per_token, -1).indices
        weights = scores.gather(-1, choice)
        if moe.normalize_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, choice, True) & valid.unsqueeze(-1)
        kept = chosen if moe.capacity_factor is None else chosen & self._within_capacity(chosen, documents.shape[1])
        load = chosen.sum((0, 1))
        dropped = load.sum() - kept.sum()
        return Routing(
            choice,
            kept.gather(-1, choice),
            weights * moe.routed_scale,
            self._auxiliary(logits, scores, chosen, valid),
            torch.cat((load, dropped.view(1))),
        )

    def _within_capacity(self, chosen: torch.Tensor, length: int) -> torch.Tensor:
        """(B, C, E) bool: whether a token is among the first of its sequence that chose the expert."""
        moe = self.moe
        assert moe.capacity_factor is not None
        capacity = math.ceil(moe.capacity_factor * moe.experts_per_token * length / moe.num_experts)
        whole = _whole_sequences(chosen, self.sequence, length)
        return self.sequence.take(whole.cumsum(1) <= capacity)

    def _auxiliary(
        self, logits: torch.Tensor, scores: torch.Tensor, chosen: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor | None:
        """(B,) by the formula above; logits, scores, chosen (B, C, E), valid (B, C)."""
        moe = self.moe
        if not has_auxiliary(moe):
            return None
        chose = chosen.sum(1).float()  # (B, E)
        for axis in (self.sequence.ulysses, self.sequence.ring):
            all_reduce(chose, axis)
        choices = chose.sum(1, keepdim=True).clamp_min(1.0)  # (B, 1): k T
        share, tokens = chose / choices, choices.squeeze(1) / moe.experts_per_token
        total = logits.new_zeros(logits.shape[0])
        if moe.balance == "auxiliary_loss":
            probabilities = scores if moe.score == "softmax" else scores / scores.sum(-1, keepdim=True)
            summed = probabilities.masked_fill(~valid.unsqueeze(-1), 0.0).sum(1)  # (B, E)
            total = total + moe.auxiliary_loss * moe.num_experts * (share * summed).sum(1) / tokens
        if moe.router_z_loss > 0:
            squares = logits.logsumexp(-1).square().masked_fill(~valid, 0.0).sum(1)
            total = total + moe.router_z_loss * squares / tokens
        return total


def has_auxiliary(moe: MoESettings) -> bool:
    """Whether the layers add to the objective."""
    return (moe.balance == "auxiliary_loss" and moe.auxiliary_loss > 0) or moe.router_z_loss > 0


def updated_bias(bias: torch.Tensor, load: torch.Tensor, rate: float) -> torch.Tensor:
    """(E,) after a step in which (E,) tokens of the global batch chose each expert (Wang et al. 2024, algorithm 1)."""
    load = load.double()
    return bias + rate * (load.mean() - load).sign().to(bias)


def _whole_sequences(part: torch.Tensor, sequence: SequenceSplit, length: int) -> torch.Tensor:
    """(B, C, ...) of each context rank to (B, S, ...) in the order of positions; integers or bool, no gradient."""
    if sequence.parts == 1:
        return part
    gathered = gather_sequence(gather_sequence(part.to(torch.uint8), sequence.ulysses), sequence.ring)
    ranks = range(sequence.ring.size)
    places = torch.cat([zigzag(length, rank, len(ranks), part.device) for rank in ranks])
    return torch.empty_like(gathered).index_copy_(1, places, gathered).to(part.dtype)
