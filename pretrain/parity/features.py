"""Features of a run, and which pairs of them the rules allow: the source of docs/layouts.md and of the covering test.

A pair's status is not written down but asked for: both features are put into one small config, and `check_config` judges it. What
is refused is told in the rule's own sentence.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.parity.layouts import CLIP_NORM, EPSILON, WARMUP_STEPS, checked

Fields = Mapping[str, Any]
"""Dotted field of the config to its value."""

SMALL: Fields = {
    "name": "pair",
    "model.vocab_size": 61,
    "model.d_model": 32,
    "model.num_layers": 2,
    "model.num_heads": 4,
    "model.d_ff": 48,
    "model.max_sequence_length": 16,
    "model.initialization.std": 0.2,
    "data.dir": "unused",
    "data.sequence_length": 16,
    "layout.dp": 1,
    "optimizer.peak_lr": 1e-3,
    "optimizer.epsilon": EPSILON,
    "optimizer.clip_norm": CLIP_NORM,
    "schedule.warmup_steps": WARMUP_STEPS,
    "train.steps": 8,
    "train.global_batch_tokens": 128,
    "train.micro_batch_sequences": 2,
    "train.precision": "fp32",
    "train.device": "cpu",
}
"""What every feature can be put into."""


@dataclass(frozen=True)
class Feature:
    """Something that a run has or has not."""

    name: str
    own: Fields
    """What it is: two features that give one field two values are alternatives."""
    has: Callable[[RunConfig], bool]
    needs: Fields = field(default_factory=dict)
    """What it has no meaning without; another feature's own fields go before it."""
    gpu: bool = False
    """Whether it runs on GPUs alone; the CPU matrix then leaves its pairs out."""


@dataclass(frozen=True)
class Pair:
    """What the rules say to two features in one run."""

    first: Feature
    second: Feature
    status: Literal["allowed", "refused", "alternatives"]
    reason: str = ""
    """The sentences of the rules that refuse it."""


_EXPERTS = {"num_experts": 4, "experts_per_token": 2, "d_ff": 24}

FEATURES: tuple[Feature, ...] = (
    Feature(
        "decoder",
        {"model.architecture": "decoder", "data.objective": "causal"},
        lambda c: c.model.architecture == "decoder",
    ),
    Feature(
        "encoder-decoder",
        {
            "model.architecture": "encoder_decoder",
            "model.num_encoder_layers": 1,
            "data.objective": "seq2seq",
            "data.source_length": 16,
        },
        lambda c: c.model.architecture == "encoder_decoder",
    ),
    Feature("experts", {"model.moe": _EXPERTS}, lambda c: c.model.moe is not None),
    Feature("tied embeddings", {"model.embeddings": "tied"}, lambda c: c.model.embeddings == "tied"),
    Feature("untied embeddings", {"model.embeddings": "untied"}, lambda c: c.model.embeddings == "untied"),
    Feature("one key-value head", {"model.num_kv_heads": 1}, lambda c: c.model.kv_heads == 1),
    Feature("query-key norm", {"model.qk_norm": "head"}, lambda c: c.model.qk_norm == "head"),
    Feature("dropout", {"model.dropout": 0.1}, lambda c: c.model.dropout > 0),
    Feature("attention dropout", {"model.attention_dropout": 0.1}, lambda c: c.model.attention_dropout > 0),
    Feature("label smoothing", {"train.loss.label_smoothing": 0.1}, lambda c: c.train.loss.label_smoothing > 0),
    Feature("z-loss", {"train.loss.z_loss": 0.01}, lambda c: c.train.loss.z_loss > 0),
    Feature("tp", {"layout.tp": 2}, lambda c: c.layout.tp > 1),
    Feature(
        "sequence parallel",
        {"layout.sequence_parallel": "enabled"},
        lambda c: c.layout.sequence_parallel == "enabled" and c.layout.tp > 1,
        {"layout.tp": 2},
    ),
    Feature("pp", {"layout.pp": 2}, lambda c: c.parallel_layout.pp > 1),
    Feature(
        "zb-h1",
        {"layout.pipeline_schedule": "zb-h1"},
        lambda c: c.layout.pipeline_schedule == "zb-h1" and c.parallel_layout.pp > 1,
        {"layout.pp": 2},
    ),
    Feature("dp", {"layout.dp": 2}, lambda c: c.parallel_layout.dp > 1),
    Feature("ulysses", {"layout.ulysses": 2}, lambda c: c.layout.ulysses > 1),
    Feature("ring", {"layout.ring": 2}, lambda c: c.layout.ring > 1),
    Feature("ep", {"layout.ep": 2}, lambda c: c.layout.ep > 1, {"layout.dp": 2, "model.moe": _EXPERTS}),
    Feature("ZeRO 0", {"layout.zero_stage": 0}, lambda c: c.layout.zero_stage == 0),
    Feature("ZeRO 1", {"layout.zero_stage": 1}, lambda c: c.layout.zero_stage == 1),
    Feature("ZeRO 2", {"layout.zero_stage": 2}, lambda c: c.layout.zero_stage == 2),
    Feature("ZeRO 3", {"layout.zero_stage": 3}, lambda c: c.layout.zero_stage == 3),
    Feature("optimizer offload", {"layout.offload": "optimizer"}, lambda c: c.layout.offload == "optimizer"),
    Feature(
        "parameter offload",
        {"layout.offload": "optimizer_and_parameters"},
        lambda c: c.layout.offload == "optimizer_and_parameters",
        {"layout.zero_stage": 3},
    ),
    Feature("selective recompute", {"train.recompute": "selective"}, lambda c: c.train.recompute == "selective"),
    Feature("full recompute", {"train.recompute": "full"}, lambda c: c.train.recompute == "full"),
    Feature("tiled loss", {"train.loss_tile_tokens": 5}, lambda c: c.train.loss_tile_tokens is not None),
    Feature(
        "tiled feed-forward",
        {"train.feed_forward_tile_tokens": 7},
        lambda c: c.train.feed_forward_tile_tokens is not None,
    ),
    Feature("fp32", {"train.precision": "fp32"}, lambda c: c.train.precision == "fp32"),
    Feature("bf16", {"train.precision": "bf16"}, lambda c: c.train.precision == "bf16"),
    Feature(
        "fp16", {"train.precision": "fp16"}, lambda c: c.train.precision == "fp16", {"train.device": "cuda"}, gpu=True
    ),
)


def config_of(*features: Feature, more: Fields | None = None) -> RunConfig:
    """A small config that has the features. Raises ConfigError where a rule refuses it."""
    fields: dict[str, Any] = dict(SMALL)
    for feature in features:
        fields |= feature.needs
    for feature in features:
        fields |= feature.own
    fields |= more or {}
    tree: dict[str, Any] = {}
    for dotted, value in fields.items():
        *sections, name = dotted.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    return checked(RunConfig.model_validate(tree))


def features_of(config: RunConfig) -> frozenset[str]:
    """Names of the features that a run has."""
    return frozenset(feature.name for feature in FEATURES if feature.has(config))


def are_alternatives(a: Feature, b: Feature) -> bool:
    """Whether they give one field two values."""
    return any(name in b.own and b.own[name] != value for name, value in a.own.items())


def judge_pair(a: Feature, b: Feature) -> Pair:
    """What the rules say."""
    if are_alternatives(a, b):
        return Pair(a, b, "alternatives")
    try:
        found = features_of(config_of(a, b))
    except ConfigError as error:
        return Pair(a, b, "refused", " ".join(str(error).split()))
    assert {a.name, b.name} <= found, f"{a.name} with {b.name} gave {sorted(found)}"
    return Pair(a, b, "allowed")


def all_pairs() -> list[Pair]:
    """Every pair, in the order of FEATURES."""
    return [judge_pair(a, b) for a, b in combinations(FEATURES, 2)]
