"""A folder that grows: what is published is a prefix of the plan, whoever finishes first."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.counts import Counts
from data_prep.growing import PUBLISH_INTERVAL_S, GrowingManifest
from data_prep.shard import ShardResult
from pretrain.data.manifest import Manifest, SpecialTokens, SplitRecord, read_manifest
from pretrain.data.shard_table import ShardRecord
from pretrain.data.token_shards import write_manifest

SOURCES = ("law", "news")
BASE = Manifest(
    kind="text",
    vocab_size=300,
    tokenizer_hash="11" * 16,
    special=SpecialTokens(0, 1, 2),
    splits={"train": SplitRecord.of([]), "validation": SplitRecord.of([])},
    sources=SOURCES,
    complete=False,
)


def result(place: int) -> ShardResult:
    """Of one range; the sources alternate."""
    source = SOURCES[place % 2]
    shard = ShardRecord(f"train/{source}/{place:06d}-000.tokens", 10 + place, 1, 40, 200, f"{place:02x}" * 16, source)
    return ShardResult(source, {"train": (shard,), "validation": ()}, Counts(documents=1, passed=1))


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Iterator[Clock]:
    yield Clock()


def published(folder: Path) -> list[str]:
    return [shard.file for shard in read_manifest(folder).splits["train"].shards]


def test_a_range_that_finishes_early_waits_for_those_before_it(tmp_path: Path, clock: Clock) -> None:
    growing = GrowingManifest(tmp_path, BASE, {}, clock)
    assert published(tmp_path) == [] and not read_manifest(tmp_path).complete
    for place, expected in ((1, []), (3, []), (0, [0, 1]), (2, [0, 1, 2, 3])):
        clock.now += 2 * PUBLISH_INTERVAL_S
        growing.add(place, result(place))
        assert sorted(published(tmp_path)) == sorted(result(at).shards["train"][0].file for at in expected)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (2, 0, 1, 5, 3, 4)])
def test_what_is_published_only_ever_grows_behind_what_was(
    tmp_path: Path, clock: Clock, order: tuple[int, ...]
) -> None:
    growing = GrowingManifest(tmp_path, BASE, {}, clock)
    before = {name: [] for name in SOURCES}
    for place in order:
        clock.now += 2 * PUBLISH_INTERVAL_S
        growing.add(place, result(place))
        manifest = read_manifest(tmp_path)
        for name in SOURCES:
            now = list(manifest.source("train", name).shards)
            assert now[: len(before[name])] == before[name]
            before[name] = now
    whole = growing.finish({"documents": 6})
    assert whole.complete and {name: list(whole.source("train", name).shards) for name in SOURCES} == before


def test_it_is_published_at_most_once_an_interval(tmp_path: Path, clock: Clock) -> None:
    growing = GrowingManifest(tmp_path, BASE, {}, clock)
    growing.add(0, result(0))
    assert published(tmp_path) == []
    clock.now += PUBLISH_INTERVAL_S
    growing.add(1, result(1))
    assert len(published(tmp_path)) == 2


def test_what_an_earlier_run_made_is_published_at_once(tmp_path: Path, clock: Clock) -> None:
    GrowingManifest(tmp_path, BASE, {0: result(0), 1: result(1), 3: result(3)}, clock)
    assert len(published(tmp_path)) == 2


def test_counts_are_those_of_the_prefix(tmp_path: Path, clock: Clock) -> None:
    growing = GrowingManifest(tmp_path, replace(BASE), {0: result(0), 2: result(2)}, clock)
    assert [growing.counts[name].documents for name in SOURCES] == [1, 0]
    growing.add(1, result(1))
    assert [growing.counts[name].documents for name in SOURCES] == [2, 1]


def test_a_manifest_that_is_slow_to_write_is_written_less_often(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(folder: Path, manifest: Manifest) -> None:
        clock.now += 1.0
        write_manifest(folder, manifest)

    monkeypatch.setattr("data_prep.growing.write_manifest", slow)
    growing = GrowingManifest(tmp_path, BASE, {}, clock)
    for place, seconds, listed in ((0, 2 * PUBLISH_INTERVAL_S, 0), (1, 30.0, 2)):
        clock.now += seconds
        growing.add(place, result(place))
        assert len(published(tmp_path)) == listed
