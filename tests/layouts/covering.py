"""Runs that hold every allowed pair of features together at least once, beside those of the matrix.

`python -m tests.layouts.covering` prints a new list, made greedily, where a feature or a rule has changed; the pairs that MATRIX
runs already are left out of it.
"""

import random
from collections.abc import Iterable
from itertools import combinations

from pretrain.config import RunConfig
from pretrain.errors import ConfigError
from pretrain.parity.features import FEATURES, Feature, all_pairs, are_alternatives, config_of, features_of
from tests.layouts.cases import CASES, MATRIX

Names = frozenset[str]
MAX_RANKS = 4
_CANDIDATES = 40
_BY_NAME = {feature.name: feature for feature in FEATURES}

COVERING: tuple[tuple[str, ...], ...] = (
    (
        "encoder-decoder",
        "experts",
        "untied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "dp",
        "ulysses",
        "ep",
        "ZeRO 2",
        "optimizer offload",
        "full recompute",
        "tiled loss",
        "bf16",
    ),
    (
        "decoder",
        "tied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "tp",
        "sequence parallel",
        "ulysses",
        "ZeRO 3",
        "parameter offload",
        "selective recompute",
        "tiled loss",
        "tiled feed-forward",
        "bf16",
    ),
    (
        "decoder",
        "untied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "tp",
        "sequence parallel",
        "ring",
        "ZeRO 0",
        "full recompute",
        "tiled loss",
        "tiled feed-forward",
        "fp32",
    ),
    (
        "encoder-decoder",
        "untied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "tp",
        "sequence parallel",
        "ring",
        "ZeRO 2",
        "optimizer offload",
        "selective recompute",
        "tiled loss",
        "tiled feed-forward",
        "bf16",
    ),
    (
        "decoder",
        "experts",
        "tied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "pp",
        "zb-h1",
        "dp",
        "ep",
        "ZeRO 1",
        "optimizer offload",
        "selective recompute",
        "tiled loss",
        "bf16",
    ),
    (
        "encoder-decoder",
        "experts",
        "untied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "ulysses",
        "ring",
        "ZeRO 3",
        "parameter offload",
        "full recompute",
        "tiled loss",
        "bf16",
    ),
    (
        "decoder",
        "experts",
        "tied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "tp",
        "sequence parallel",
        "dp",
        "ep",
        "ZeRO 0",
        "selective recompute",
        "tiled loss",
        "fp32",
    ),
    (
        "decoder",
        "untied embeddings",
        "one key-value head",
        "query-key norm",
        "dropout",
        "attention dropout",
        "label smoothing",
        "z-loss",
        "dp",
        "ring",
        "ZeRO 3",
        "optimizer offload",
        "full recompute",
        "tiled loss",
        "tiled feed-forward",
        "fp32",
    ),
)
"""Features of each run."""


def covering_config(names: Iterable[str]) -> RunConfig:
    """The config of a run of COVERING."""
    return config_of(*(_BY_NAME[name] for name in names))


def wanted_pairs() -> set[Names]:
    """Pairs that the rules allow and a CPU can run."""
    pairs = [pair for pair in all_pairs() if pair.status == "allowed" and not (pair.first.gpu or pair.second.gpu)]
    return {frozenset({pair.first.name, pair.second.name}) for pair in pairs}


def pairs_of(config: RunConfig) -> set[Names]:
    """Pairs of features that a run holds together."""
    return {frozenset(pair) for pair in combinations(sorted(features_of(config)), 2)}


def covered_by_matrix() -> set[Names]:
    """Pairs that the parity test runs."""
    return {pair for case, setup in MATRIX for pair in pairs_of(CASES[case].config(setup))}


def generate() -> list[tuple[str, ...]]:
    """A new list: at each turn the candidate that covers most of what is left."""
    rng, runs = random.Random(3), []
    left = wanted_pairs() - covered_by_matrix()
    while left:
        found = [_candidate(rng, left) for _ in range(_CANDIDATES)]
        best = max(found, key=lambda names: len(left & pairs_of(covering_config(names))))
        runs.append(best)
        left -= pairs_of(covering_config(best))
    return runs


def _candidate(rng: random.Random, left: set[Names]) -> tuple[str, ...]:
    """A pair that is left, and whatever else goes with it, in random order."""
    chosen = [_BY_NAME[name] for name in sorted(rng.choice(sorted(left, key=sorted)))]
    for feature in rng.sample(FEATURES, len(FEATURES)):
        if feature not in chosen and not feature.gpu and _fits(chosen, feature):
            chosen.append(feature)
    return tuple(feature.name for feature in FEATURES if feature in chosen)


def _fits(chosen: list[Feature], feature: Feature) -> bool:
    if any(are_alternatives(feature, other) for other in chosen):
        return False
    try:
        config = config_of(*chosen, feature)
    except ConfigError:
        return False
    return config.parallel_layout.world_size <= MAX_RANKS


if __name__ == "__main__":
    print("COVERING: tuple[tuple[str, ...], ...] = (")
    for run in generate():
        print("    (" + ", ".join(f'"{name}"' for name in run) + "),")
    print(")")
