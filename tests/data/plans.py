"""Manifests of any size without a shard behind them."""

from collections.abc import Mapping, Sequence

from pretrain.data.manifest import Manifest, ShardRecord, SplitRecord
from pretrain.data.plan import Plan, build_plan
from pretrain.data.settings import DataSettings
from tests.data.folders import SPECIAL, TOKENIZER_HASH


def virtual_manifest(tokens: Mapping[str, Sequence[int]], complete: bool = True, salt: int = 0) -> Manifest:
    """A manifest whose sources have shards of these many tokens."""
    records = [
        ShardRecord(f"train/{name}-{at:06d}.tokens", count, 1, count, 2 * count, f"{at + salt:032x}", name)
        for name, counts in tokens.items()
        for at, count in enumerate(counts)
    ]
    splits = {"train": SplitRecord.of(records), "validation": SplitRecord.of([])}
    return Manifest("text", 100, TOKENIZER_HASH, SPECIAL, splits, sources=tuple(tokens), complete=complete)  # type: ignore[arg-type]


def plan_of(manifest: Manifest, sequence_length: int = 16, seed: int = 7, **order: object) -> Plan:
    """The plan of a manifest under these settings of data.order."""
    data = DataSettings.model_validate({"dir": "data", "sequence_length": sequence_length, "order": order})
    return build_plan(data, manifest, seed, {"sequence_length": sequence_length})
