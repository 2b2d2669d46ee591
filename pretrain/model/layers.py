"""Settings to a list of layers: the whole of what a model is.

decoder          embedding, positions, layers.i, [final_norm], head
encoder_decoder  encoder.embedding, encoder.positions, encoder.layers.i, [encoder.final_norm],
                 decoder.embedding, decoder.positions, decoder.layers.i, [decoder.final_norm], head

A list can be cut into pipeline stages at every place (the law of carry.py, checked when it is built); `LayerStack` runs it in
one process. Final norms exist with pre-norm alone. A field of the carry is dropped by its last reader.

Not taken: one nn.Module with a hand-written forward a family (a pipeline needs the list, and two descriptions would part).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from pretrain.errors import ConfigError
from pretrain.model.block import BlockContext, DecoderView, EncoderView, View, build_block
from pretrain.model.carry import Carry, Flow, trace_fields
from pretrain.model.dropout import build_dropout
from pretrain.model.initialization import embedding_distribution
from pretrain.model.layer import pass_on
from pretrain.model.masks import Masks
from pretrain.model.norm import NormLayer
from pretrain.model.positions import LearnedPositions, PositionsLayer, Rotary, SinusoidalPositions, positions_of
from pretrain.model.settings import ModelSettings
from pretrain.parallel.embedding import VocabularyTable
from pretrain.parallel.linear import place
from pretrain.parallel.mesh import Axis
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
    """How the module is used here; None: called with the carry."""

    def run(self, module: nn.Module, carry: Carry) -> Carry:
        """The carry behind this layer, whose (perhaps shared) module is given."""
        return module(carry) if self.apply is None else self.apply(module, carry)


@dataclass(frozen=True)
class _Draft:
    """A layer before it is known which fields it is the last to read."""

    name: str
    reads: frozenset[str]
    adds: frozenset[str]
    make: Callable[[Flow], nn.Module]
    cost: float = 0.0
    tied_key: str | None = None
    use: Callable[[Flow], "TableUse"] | None = None


@dataclass(frozen=True)
class EmbedTokens:
    """Use of a vocabulary table: tokens to the stream."""

    flow: Flow
    field: str
    scale: float
    starts_decoder: bool
    """Whether a finished encoder stands before it, whose stream becomes the memory."""

    def __call__(self, table: VocabularyTable, carry: Carry) -> Carry:
        """Adds `hidden` (B, S, D), and `memory` (B, T, D) where an encoder ends."""
        hidden = table.embed(carry[self.field])
        if self.scale != 1.0:
            hidden = hidden * self.scale
        if self.starts_decoder:
            return pass_on(carry, self.flow, hidden=hidden, memory=carry["hidden"])
        return pass_on(carry, self.flow, hidden=hidden)


@dataclass(frozen=True)
class ProjectToLogits:
    """Use of a vocabulary table: the stream to logits."""

    flow: Flow
    scale: float

    def __call__(self, table: VocabularyTable, carry: Carry) -> Carry:
        """Replaces `hidden` (B, S, D) by `logits` (B, S, V/tp)."""
        hidden = carry["hidden"]
        return pass_on(carry, self.flow, logits=table.logits(hidden if self.scale == 1.0 else hidden * self.scale))


TableUse = EmbedTokens | ProjectToLogits


class TableLayer(VocabularyTable):
    """A vocabulary table in a list of layers, with the use that its first place makes of it."""

    def __init__(self, model: ModelSettings, axis: Axis, use: TableUse) -> None:
        super().__init__(_vocab_size(model), model.d_model, axis, weight=embedding_distribution(model))
        self.use = use

    def forward(self, carry: Carry, use: TableUse | None = None) -> Carry:
        """The carry behind its first use, or behind the given one of a tied layer.

        Every use passes through here, for ZeRO-3 gathers a weight when its module is called.
        """
        return (use or self.use)(self, carry)


def build_layers(model: ModelSettings, axis: Axis, *, seed: int) -> list[LayerSpec]:
    """The layers of a model, in order.

    Args:
        model: the model, with its vocabulary size.
        axis: the model axis of the mesh.
        seed: of the run; keys initial weights and dropout.

    Raises:
        ConfigError: the settings describe no model, or none that can be split over the axis.
        CarryLawError: a fault of this file.
    """
    check_model(model, axis)
    if model.architecture == "decoder":
        drafts = _decoder_only(model, axis, seed)
    else:
        drafts = _encoder_decoder(model, axis, seed)
    flows = _flows(drafts)
    trace_fields(input_fields(model), [(draft.name, flow) for draft, flow in zip(drafts, flows, strict=True)])
    firsts: dict[str, LayerSpec] = {}
    specs = []
    for draft, flow in zip(drafts, flows, strict=True):
        spec = _spec(draft, flow, seed, firsts)
        if spec.tied_key is not None:
            firsts.setdefault(spec.tied_key, spec)
        specs.append(spec)
    return specs


def input_fields(model: ModelSettings) -> tuple[str, ...]:
    """Fields of the carry that the batch has to provide: those that some layer reads before any adds them."""
    fields = ["tokens", "positions", "documents"]
    if model.positions in ("none",):
        fields.remove("positions")
    if model.architecture == "encoder_decoder":
        fields += ["source_tokens", "source_documents"]
    return (*fields, *(("sample",) if _drops(model) else ()))


class LayerStack(nn.Module):
    """All layers in one process. Its parameters' paths are their global names."""

    def __init__(self, specs: Sequence[LayerSpec]) -> None:
        super().__init__()
        self.specs = tuple(specs)
        self.fields = required_fields(spec.flow for spec in specs)
        self._paths: list[str] = []
        firsts: dict[str, str] = {}
        for spec in specs:
            path = spec.name if spec.tied_key is None else firsts.setdefault(spec.tied_key, spec.name)
            if path == spec.name:
                _add_at(self, path, spec.build())
            self._paths.append(path)

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Fields of the carry (others are left aside) to logits (B, S, V/tp)."""
        carry = {name: inputs[name] for name in self.fields}
        for spec, path in zip(self.specs, self._paths, strict=True):
            carry = spec.run(self.get_submodule(path), carry)
        return carry["logits"]


def required_fields(flows: Iterable[Flow]) -> tuple[str, ...]:
    """Fields that are read before a layer adds them, sorted."""
    needed: set[str] = set()
    added: set[str] = set()
    for flow in flows:
        needed |= flow.reads - added
        added |= flow.adds
    return tuple(sorted(needed))


def count_parameters(model: ModelSettings) -> int:
    """Global parameters, tied ones once. Nothing is allocated: the layers are built on the meta device."""
    single = Axis("model", 0, (0,), None)
    shapes: dict[str, tuple[int, ...]] = {}
    with torch.device("meta"):
        for spec in build_layers(model, single, seed=0):
            for parameter in spec.build().parameters():
                shard = shard_of(parameter)
                shapes[shard.name] = shard.shape
    return sum(math.prod(shape) for shape in shapes.values())


def check_model(model: ModelSettings, axis: Axis) -> None:
    """Raises ConfigError where the settings describe no model, or none that can be split over the axis."""
    for name, value in (("num_heads", model.num_heads), ("d_ff", model.d_ff)):
        if value % axis.size:
            raise ConfigError(f"model.{name} = {value} does not divide by layout.tp = {axis.size}; change one of them")
    if model.num_heads % model.kv_heads:
        raise ConfigError(
            f"model.num_kv_heads = {model.kv_heads} must divide model.num_heads = {model.num_heads}: "
            "each key-value head serves equally many query heads"
        )
    if model.head_dim is None and model.d_model % model.num_heads:
        raise ConfigError(
            f"model.d_model = {model.d_model} does not divide by model.num_heads = {model.num_heads}; "
            "change one of them or set model.head_dim"
        )
    if model.positions == "rotary" and model.width_of_head % 2:
        raise ConfigError(
            f"rotary positions turn pairs of features: model.head_dim = {model.width_of_head} must be even"
        )
    if (model.architecture == "encoder_decoder") != (model.num_encoder_layers > 0):
        raise ConfigError(
            f"model.num_encoder_layers = {model.num_encoder_layers} with model.architecture = {model.architecture}: "
            "an encoder_decoder has encoder layers, a decoder has none"
        )


def _vocab_size(model: ModelSettings) -> int:
    if model.vocab_size is None:
        raise ConfigError("model.vocab_size is not set: give it, or name data whose tokenizer tells it")
    return model.vocab_size


def _drops(model: ModelSettings) -> bool:
    return model.dropout > 0 or model.attention_dropout > 0


def _flows(drafts: Sequence[_Draft]) -> list[Flow]:
    """Each draft's flow: a field is dropped by its last reader, unless that one replaces it."""
    flows = []
    for index, draft in enumerate(drafts):
        later = frozenset[str]().union(*(other.reads for other in drafts[index + 1 :]))
        flows.append(Flow(draft.reads, draft.adds, draft.reads - later - draft.adds))
    return flows


def _spec(draft: _Draft, flow: Flow, seed: int, firsts: Mapping[str, LayerSpec]) -> LayerSpec:
    first = None if draft.tied_key is None else firsts.get(draft.tied_key)
    apply = None if draft.use is None else partial(_apply_use, draft.use(flow))
    if first is not None:
        return LayerSpec(draft.name, first.build, flow, draft.cost, draft.tied_key, apply)
    return LayerSpec(draft.name, partial(_build, draft, flow, seed), flow, draft.cost, draft.tied_key, None)


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


def _decoder_only(model: ModelSettings, axis: Axis, seed: int) -> list[_Draft]:
    view = DecoderView(Masks(), _rotary(model))
    return [
        _embedding(model, axis, "embedding", "tokens", starts_decoder=False),
        _positions(model, seed, "positions", _target_positions, "positions"),
        *(_block(model, axis, seed, f"layers.{i}", model.num_layers, view, None) for i in range(model.num_layers)),
        *_final_norm(model, "final_norm"),
        _head(model, axis),
    ]


def _encoder_decoder(model: ModelSettings, axis: Axis, seed: int) -> list[_Draft]:
    masks, rotary = Masks(), _rotary(model)
    encoder, decoder = EncoderView(masks, rotary), DecoderView(masks, rotary)
    depth, encoder_depth = model.num_layers, model.num_encoder_layers
    return [
        _embedding(model, axis, "encoder.embedding", "source_tokens", starts_decoder=False),
        _positions(model, seed, "encoder.positions", _source_positions, "source_documents"),
        *(_block(model, axis, seed, f"encoder.layers.{i}", encoder_depth, encoder, None) for i in range(encoder_depth)),
        *_final_norm(model, "encoder.final_norm"),
        _embedding(model, axis, "decoder.embedding", "tokens", starts_decoder=True),
        _positions(model, seed, "decoder.positions", _target_positions, "positions"),
        *(_block(model, axis, seed, f"decoder.layers.{i}", depth, decoder, masks) for i in range(depth)),
        *_final_norm(model, "decoder.final_norm"),
        _head(model, axis),
    ]


def _rotary(model: ModelSettings) -> Rotary | None:
    return Rotary(model) if model.positions == "rotary" else None


def _target_positions(carry: Carry) -> torch.Tensor:
    return carry["positions"]


def _source_positions(carry: Carry) -> torch.Tensor:
    return positions_of(carry["source_documents"])


def _embedding(model: ModelSettings, axis: Axis, name: str, field: str, *, starts_decoder: bool) -> _Draft:
    scale = math.sqrt(model.d_model) if model.embedding_scale == "sqrt_d_model" else 1.0
    use = partial(EmbedTokens, field=field, scale=scale, starts_decoder=starts_decoder)
    return _Draft(
        name,
        frozenset({field, "hidden"} if starts_decoder else {field}),
        frozenset({"hidden", "memory"} if starts_decoder else {"hidden"}),
        lambda flow: TableLayer(model, axis, use(flow)),
        tied_key="embedding" if model.embeddings == "tied" else None,
        use=use,
    )


def _head(model: ModelSettings, axis: Axis) -> _Draft:
    scale = model.d_model**-0.5 if model.logit_scale == "rsqrt_d_model" else 1.0
    use = partial(ProjectToLogits, scale=scale)
    return _Draft(
        "head",
        frozenset({"hidden"}),
        frozenset({"logits"}),
        lambda flow: TableLayer(model, axis, use(flow)),
        cost=2.0 * _vocab_size(model) * model.d_model,
        tied_key="embedding" if model.embeddings == "tied" else None,
        use=use,
    )


def _positions(
    model: ModelSettings, seed: int, name: str, positions_from: Callable[[Carry], torch.Tensor], field: str
) -> _Draft:
    def make(flow: Flow) -> nn.Module:
        dropout = build_dropout(model.dropout, seed, name)
        if model.positions == "sinusoidal":
            return SinusoidalPositions(model, flow, positions_from, dropout)
        if model.positions == "learned":
            return LearnedPositions(model, flow, positions_from, dropout)
        return PositionsLayer(flow, positions_from, dropout)

    reads = {"hidden"} | ({field} if model.positions in ("sinusoidal", "learned") else set())
    return _Draft(name, _with_sample(reads, model.dropout), frozenset({"hidden"}), make)


def _block(
    model: ModelSettings, axis: Axis, seed: int, name: str, num_layers: int, view: View, cross_masks: Masks | None
) -> _Draft:
    reads = {"hidden"} | view.reads | ({"memory", "documents", "source_documents"} if cross_masks else set())
    context = BlockContext(axis, seed, name, num_layers, view, cross_masks)
    return _Draft(
        name,
        _with_sample(reads, model.dropout + model.attention_dropout),
        frozenset({"hidden"}),
        lambda flow: build_block(model, flow, context),
        cost=_block_cost(model, 2 if cross_masks else 1),
    )


def _block_cost(model: ModelSettings, attentions: int) -> float:
    """Forward FLOPs a token: two for each weight, and queries times keys times values over half a window."""
    width, kv_width = model.num_heads * model.width_of_head, model.kv_heads * model.width_of_head
    attention = 2 * model.d_model * (width + kv_width) * 2 + 2 * model.max_sequence_length * width
    matrices = 3 if model.activation == "swiglu" else 2
    return float(attentions * attention + 2 * matrices * model.d_model * model.d_ff)


def _final_norm(model: ModelSettings, name: str) -> list[_Draft]:
    if model.norm_position == "post":
        return []
    return [_Draft(name, frozenset({"hidden"}), frozenset({"hidden"}), partial(NormLayer, model))]


def _with_sample(reads: set[str], rate: float) -> frozenset[str]:
    return frozenset(reads | ({"sample"} if rate > 0 else set()))
