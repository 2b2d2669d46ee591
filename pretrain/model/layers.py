"""Settings to a list of layers: the whole of what a model is.

decoder          embedding, positions, layers.i, [final_norm], head
encoder_decoder  encoder.embedding, encoder.positions, encoder.layers.i, [encoder.final_norm],
                 decoder.embedding, decoder.positions, decoder.layers.i, [decoder.final_norm], head

A list can be cut into pipeline stages at every place (the law of carry.py, checked when it is built); `LayerStack` runs it in
one process. Final norms exist with pre-norm alone. A field of the carry is dropped by its last reader.

Not taken: one nn.Module with a hand-written forward a family (a pipeline needs the list, and two descriptions would part).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pretrain.model.block import BlockContext, DecoderView, EncoderView, View, build_block
from pretrain.model.carry import FIELDS, Carry, Flow, trace_fields
from pretrain.model.dropout import build_dropout
from pretrain.model.flops import Stack, block_forward_flops, head_forward_flops
from pretrain.model.masks import Masks
from pretrain.model.moe import ExpertRow, expert_layers, tallied_fields
from pretrain.model.norm import NormLayer
from pretrain.model.positions import PositionsLayer, Rotary, build_positions, positions_of
from pretrain.model.recompute import Recompute
from pretrain.model.ring_masks import build_masks
from pretrain.model.settings import ModelSettings
from pretrain.model.vocabulary import (
    EmbedTokens,
    LossTiles,
    ProjectToLogits,
    ProjectToLosses,
    StartDecoder,
    TableLayer,
    TableUse,
    vocabulary_of,
)
from pretrain.parallel.linear import place
from pretrain.parallel.sequence import ModelMesh, SequenceSplit
from pretrain.parallel.shard import shard_of


@dataclass(frozen=True)
class LayerSpec:
    """One layer of a model, not yet built."""

    name: str
    """Global prefix of its parameters' names."""
    build: Callable[[], nn.Module]
    """Makes the module with named and initialised parameters; on torch's meta device without values."""
    flow: Flow
    cost: float
    """Forward FLOPs a token, to balance stages."""
    tied_key: str | None = None
    """Specs of one key share one module, built by any of them; it has one parameter, `weight`, named after the first."""
    apply: Callable[[nn.Module, Carry], Carry] | None = None
    """How the shared module is used here; None: called with the carry."""
    has_parameters: bool = True
    """A stage of layers without any would leave its optimizer nothing: they stay with the layer before them."""

    def run(self, module: nn.Module, carry: Carry) -> Carry:
        """The carry behind this layer, whose (perhaps shared) module is given."""
        return module(carry) if self.apply is None else self.apply(module, carry)


class LayerStack(nn.Module):
    """All layers in one process. Its parameters' paths are their global names."""

    def __init__(self, specs: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.fields = fields_of(specs)
        firsts: dict[str, nn.Module] = {}
        steps: list[tuple[LayerSpec, nn.Module]] = []
        for spec in specs:
            module = firsts.get(spec.tied_key or "")
            if module is None:
                module = spec.build()
                _add_at(self, spec.name, module)
                if spec.tied_key is not None:
                    firsts[spec.tied_key] = module
            steps.append((spec, module))
        # Registered once, above, under the global names; the tuple is the order of execution.
        self.steps = tuple(steps)
        """The layers in order of execution, with their modules."""

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Fields of the carry (others are left aside) to logits (B, C, V/tp)."""
        return self.end(inputs)["logits"]

    def end(self, inputs: Mapping[str, torch.Tensor]) -> Carry:
        """Fields of the carry (others are left aside) to what is left of it at the end."""
        carry = {name: inputs[name] for name in self.fields}
        for spec, module in self.steps:
            carry = spec.run(module, carry)
        return carry


def build_layers(
    model: ModelSettings,
    mesh: ModelMesh,
    *,
    seed: int,
    recompute: Recompute | None = None,
    loss_tiles: LossTiles | None = None,
) -> list[LayerSpec]:
    """The layers of a model, in order.

    Args:
        model: settings that hold the rules of pretrain.rules, with the vocabulary's size.
        mesh: what the layers see of the layout.
        seed: of the run; keys initial weights and dropout.
        recompute: what of a block is computed again in backward; None: nothing.
        loss_tiles: how the head makes losses from labels; None: it leaves logits.

    Raises:
        ConfigError: the size of the vocabulary is missing.
        CarryLawError: the list could not be cut into stages; a fault of this file.
    """
    vocabulary_of(model)
    drafts = _drafts(model, mesh, seed, recompute or Recompute(), loss_tiles)
    flows = _flows(drafts)
    trace_fields(_inputs(flows), [(draft.name, flow) for draft, flow in zip(drafts, flows, strict=True)])
    first_builds: dict[str, Callable[[], nn.Module]] = {}
    specs = []
    for draft, flow in zip(drafts, flows, strict=True):
        build, apply = partial(_build, draft, flow, seed), None
        if draft.tied_key is not None and draft.use is not None:
            build = first_builds.setdefault(draft.tied_key, build)
            apply = partial(_apply_use, draft.use(flow))
        specs.append(LayerSpec(draft.name, build, flow, draft.cost, draft.tied_key, apply, draft.has_parameters))
    return specs


def fields_of(specs: Sequence[LayerSpec]) -> tuple[str, ...]:
    """Fields of the carry that the batch has to provide for these layers, in sending order."""
    return _inputs([spec.flow for spec in specs])


def input_fields(model: ModelSettings) -> tuple[str, ...]:
    """The same for a model whose head leaves logits."""
    return _inputs(_flows(_drafts(model, ModelMesh(), 0, Recompute(), None)))


def count_parameters(model: ModelSettings) -> int:
    """Global parameters, tied ones once. Nothing is allocated: the layers are built on the meta device.

    Raises:
        ConfigError: the size of the vocabulary is missing.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for spec in build_layers(model, ModelMesh(), seed=0):
            for parameter in spec.build().parameters():
                shard = shard_of(parameter)
                shapes[shard.name] = shard.shape
    return sum(math.prod(shape) for shape in shapes.values())


@dataclass(frozen=True)
class _Draft:
    """A layer before it is known which fields it is the last to read."""

    name: str
    reads: frozenset[str]
    adds: frozenset[str]
    make: Callable[[Flow], nn.Module]
    cost: float = 0.0
    tied_key: str | None = None
    use: Callable[[Flow], TableUse] | None = None
    has_parameters: bool = True


def _flows(drafts: Sequence[_Draft]) -> list[Flow]:
    """Each draft's flow: a field is dropped by its last reader, unless that one replaces it."""
    flows = []
    for index, draft in enumerate(drafts):
        later = frozenset[str]().union(*(other.reads for other in drafts[index + 1 :]))
        flows.append(Flow(draft.reads, draft.adds, draft.reads - later - draft.adds))
    return flows


def _inputs(flows: Sequence[Flow]) -> tuple[str, ...]:
    """Fields that are read before a layer adds them, in sending order."""
    needed: set[str] = set()
    added: set[str] = set()
    for flow in flows:
        needed |= flow.reads - added
        added |= flow.adds
    return tuple(name for name in FIELDS if name in needed)


def _build(draft: _Draft, flow: Flow, seed: int) -> nn.Module:
    module = draft.make(flow)
    place(module, draft.name, seed)
    return module


def _apply_use(use: TableUse, module: nn.Module, carry: Carry) -> Carry:
    return module(carry, use)


def _add_at(root: nn.Module, path: str, module: nn.Module) -> None:
    """Adds a module under a dotted path, with plain containers on the way."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in dict(root.named_children()):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, module)


def _drafts(
    model: ModelSettings, mesh: ModelMesh, seed: int, recompute: Recompute, loss_tiles: LossTiles | None
) -> list[_Draft]:
    rotary = Rotary(model) if model.positions == "rotary" else None
    parts = _Parts(model, mesh, seed, build_masks(mesh.sequence), rotary, recompute, loss_tiles)
    return list(parts.decoder() if model.architecture == "decoder" else parts.encoder_decoder())


@dataclass(frozen=True)
class _Parts:
    """Drafts of the layers of one model."""

    model: ModelSettings
    mesh: ModelMesh
    seed: int
    masks: Masks
    rotary: Rotary | None
    recompute: Recompute
    loss_tiles: LossTiles | None

    def decoder(self) -> Iterator[_Draft]:
        view = DecoderView(self.masks, self.rotary)
        yield self.embedding("embedding", "tokens")
        yield self.positions("positions", _target_positions, "positions")
        yield from self.blocks("layers", self.model.num_layers, view, "decoder")
        yield from self.final_norm("final_norm")
        yield self.head()

    def encoder_decoder(self) -> Iterator[_Draft]:
        yield self.embedding("encoder.embedding", "source_tokens")
        yield self.positions("encoder.positions", partial(_source_positions, self.mesh.sequence), "source_documents")
        view = EncoderView(self.masks, self.rotary, self.mesh.sequence)
        yield from self.blocks("encoder.layers", self.model.num_encoder_layers, view, "encoder")
        yield from self.final_norm("encoder.final_norm")
        yield self.start_decoder("decoder.embedding")
        yield self.positions("decoder.positions", _target_positions, "positions")
        view = DecoderView(self.masks, self.rotary)
        yield from self.blocks("decoder.layers", self.model.num_layers, view, "decoder", self.masks)
        yield from self.final_norm("decoder.final_norm")
        yield self.head()

    def embedding(self, name: str, field: str) -> _Draft:
        use = partial(EmbedTokens, field=field, scale=self.embedding_scale)
        return self.table(name, {field}, {"hidden"}, use, cost=0.0)

    def start_decoder(self, name: str) -> _Draft:
        use = partial(StartDecoder, field="tokens", scale=self.embedding_scale)
        return self.table(name, {"tokens", "hidden"}, {"hidden", "memory"}, use, cost=0.0)

    def head(self) -> _Draft:
        scale = self.model.d_model**-0.5 if self.model.logit_scale == "rsqrt_d_model" else 1.0
        cost = head_forward_flops(self.model)
        if self.loss_tiles is not None:
            use = partial(ProjectToLosses, scale=scale, tiles=self.loss_tiles)
            return self.table("head", {"hidden", "labels"}, {"losses"}, use, cost=cost)
        return self.table("head", {"hidden"}, {"logits"}, partial(ProjectToLogits, scale=scale), cost=cost)

    def table(self, name: str, reads: set[str], adds: set[str], use: Callable[[Flow], TableUse], cost: float) -> _Draft:
        key = "embedding" if self.model.embeddings == "tied" else None
        return _Draft(
            name, frozenset(reads), frozenset(adds), lambda f: TableLayer(self.model, self.mesh, use(f)), cost, key, use
        )

    @property
    def embedding_scale(self) -> float:
        return math.sqrt(self.model.d_model) if self.model.embedding_scale == "sqrt_d_model" else 1.0

    def positions(self, name: str, positions_from: Callable[[Carry], torch.Tensor], field: str) -> _Draft:
        def make(flow: Flow) -> PositionsLayer:
            dropout = build_dropout(self.model.dropout, self.seed, name, self.mesh.stream)
            return build_positions(self.model, flow, positions_from, dropout, self.mesh.stream)

        reads = {"hidden"} | ({field} if self.model.positions in ("sinusoidal", "learned") else set())
        learned = self.model.positions == "learned"
        all_reads = _with_sample(reads, self.model.dropout)
        return _Draft(name, all_reads, frozenset({"hidden"}), make, has_parameters=learned)

    def blocks(
        self, prefix: str, number: int, view: View, stack: Stack, cross_masks: Masks | None = None
    ) -> Iterator[_Draft]:
        reads = {"hidden"} | view.reads | ({"memory", "documents", "source_documents"} if cross_masks else set())
        all_reads = _with_sample(reads, max(self.model.dropout, self.model.attention_dropout))
        with_experts = expert_layers(self.model)
        for index in range(number):
            name, experts, tally_reads, tally_adds = f"{prefix}.{index}", None, frozenset[str](), frozenset[str]()
            if name in with_experts:
                experts = ExpertRow(with_experts.index(name), len(with_experts))
                tally_adds = tallied_fields(self.model)
                tally_reads = tally_adds if experts.index > 0 else tally_reads
            context = BlockContext(
                self.mesh, self.seed, name, number, view, cross_masks, experts=experts, recompute=self.recompute
            )
            make = partial(build_block, self.model, context)
            kind = "dense" if experts is None else "experts"
            cost = block_forward_flops(self.model, stack, self.model.max_sequence_length, feed_forward=kind)
            yield _Draft(name, all_reads | tally_reads, frozenset({"hidden"}) | tally_adds, make, cost)

    def final_norm(self, name: str) -> Iterator[_Draft]:
        if self.model.norm_position == "pre":
            yield _Draft(
                name, frozenset({"hidden"}), frozenset({"hidden"}), partial(NormLayer, self.model, self.mesh.stream)
            )


def _target_positions(carry: Carry) -> torch.Tensor:
    return carry["positions"]


def _source_positions(sequence: SequenceSplit, carry: Carry) -> torch.Tensor:
    return sequence.take(positions_of(carry["source_documents"]))


def _with_sample(reads: set[str], rate: float) -> frozenset[str]:
    return frozenset(reads | ({"sample"} if rate > 0 else set()))
