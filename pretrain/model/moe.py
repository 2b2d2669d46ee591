"""A mixture of experts in place of the feed-forward layer (Shazeer et al. 2017; Fedus et al. 2021, Switch Transformer).

Legend: B sequences, S positions of the whole sequence, C of the context rank, N = B x C tokens, D width of the stream, E experts,
k of a token, A rows that are sent to experts (N x k less padding and what a capacity drops), M layers with experts.

Tokens are sorted by expert, pass their experts (perhaps on other ranks: parallel/expert_exchange.py), and come back weighted.
Under tensor parallelism every rank routes alike, and an expert's output is a rank's addend, as the dense layer's is: the weights
pass `copy_to_axis`, for each rank has the gradient of its addend alone; the losses of balance are made of scores that do not, for
each rank has all of their gradient.

Loads are not counted on the side but in the carry, whose row of each layer the layer fills: recomputing a block then counts
nothing twice, and one reduction a step at the end of the pipeline gives all of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from pretrain.model.carry import Carry
from pretrain.model.experts import Experts
from pretrain.model.feed_forward import build_feed_forward
from pretrain.model.recompute import Runner, keep
from pretrain.model.router import Router, Routing, has_auxiliary
from pretrain.model.settings import ModelSettings
from pretrain.parallel.collectives import copy_to_axis
from pretrain.parallel.expert_exchange import take_rows, through_experts
from pretrain.parallel.sequence import ModelMesh


class Tally(NamedTuple):
    """What a layer with experts leaves beside its output."""

    auxiliary: torch.Tensor | None
    """(B,): see `Routing`."""
    load: torch.Tensor
    """(E + 1,): see `Routing`."""


class MixtureOfExperts(nn.Module):
    """Router, routed experts, and perhaps shared ones, which every token passes."""

    def __init__(
        self, model: ModelSettings, mesh: ModelMesh, num_layers: int, layer: str, activation: Runner = keep
    ) -> None:
        super().__init__()
        moe = model.moe
        assert moe is not None
        self.axes = (mesh.model, mesh.expert)
        self.num_experts = moe.num_experts
        self.router = Router(model, moe, mesh, layer)
        self.experts = Experts(model, moe, mesh, num_layers, activation)
        self.shared = None
        if moe.num_shared_experts:
            width = moe.num_shared_experts * moe.d_ff
            self.shared = build_feed_forward(model, mesh, num_layers, activation, width=width)

    def forward(self, entered: torch.Tensor, documents: torch.Tensor) -> tuple[torch.Tensor, Tally]:
        """(B, C, D), past `Stream.enter`, and documents (B, S) to this rank's addend (B, C, D), yet to pass `Stream.leave`."""
        routing: Routing = self.router(entered, documents)
        addend = self._routed(entered, routing)
        if self.shared is not None:
            addend = addend + self.shared(entered)
        return addend, Tally(routing.auxiliary, routing.load)

    def _routed(self, entered: torch.Tensor, routing: Routing) -> torch.Tensor:
        model, expert = self.axes
        width, k = entered.shape[-1], routing.choice.shape[-1]
        # What is not sent stands behind all experts and is cut off. A stable sort keeps the order of tokens.
        where = routing.choice.masked_fill(~routing.kept, self.num_experts).flatten()
        counts = torch.bincount(where, minlength=self.num_experts + 1)[: self.num_experts]
        order = where.argsort(stable=True)[: int(counts.sum())]
        rows = take_rows(entered.reshape(-1, width), order, repeats=k)
        rows = through_experts(rows, counts, expert, self.experts)
        places = rows.new_zeros((where.numel(), width)).index_copy(0, order, rows).view(-1, k, width)
        weights = copy_to_axis(routing.weights, model).to(rows.dtype).view(-1, 1, k)
        return torch.bmm(weights, places).view(entered.shape)


def expert_layers(model: ModelSettings) -> tuple[str, ...]:
    """Names of the layers with experts, in the order of the model: the M rows of the carry's `loads`."""
    if model.moe is None:
        return ()
    decoder = range(model.moe.first_dense_layers, model.num_layers)
    if model.architecture == "decoder":
        return tuple(f"layers.{i}" for i in decoder)
    encoder = range(model.moe.first_dense_layers, model.num_encoder_layers)
    return (*(f"encoder.layers.{i}" for i in encoder), *(f"decoder.layers.{i}" for i in decoder))


def tallied_fields(model: ModelSettings) -> frozenset[str]:
    """Fields of the carry that layers with experts add to."""
    assert model.moe is not None
    return frozenset({"loads", "auxiliary"} if has_auxiliary(model.moe) else {"loads"})


@dataclass(frozen=True)
class ExpertRow:
    """Which of the layers with experts a layer is."""

    index: int
    layers: int


def add_tally(carry: Carry, tally: Tally, row: ExpertRow) -> Carry:
    """The fields `auxiliary` (B,) and `loads` (M, E + 1) of the carry behind a layer: its loss added, its row filled."""
    loads = carry["loads"].clone() if "loads" in carry else tally.load.new_zeros((row.layers, tally.load.numel()))
    loads[row.index] = tally.load
    added = {"loads": loads}
    if tally.auxiliary is not None:
        added["auxiliary"] = carry["auxiliary"] + tally.auxiliary if "auxiliary" in carry else tally.auxiliary
    return added


def routers(module: nn.Module) -> list[Router]:
    """The routers in a module."""
    return [part for part in module.modules() if isinstance(part, Router)]
