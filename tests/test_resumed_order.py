"""Resume: the order that a run left, or one that was allowed, in a segment of its own."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.format import RunState
from pretrain.data.feed import Feed
from pretrain.data.manifest import read_manifest, write_manifest
from pretrain.data.settings import DataSettings
from pretrain.errors import DataError
from pretrain.resumed_order import RunOrder, fresh_order, resumed_order
from tests.data.sources import GrowingFolder

WEIGHTS = {"web": 0.7, "code": 0.3}


@pytest.fixture
def folder(tmp_path: Path) -> GrowingFolder:
    folder = GrowingFolder(tmp_path, {"web": 40, "code": 30})
    folder.publish(folder.tasks)
    return folder


def feed(folder: GrowingFolder, seed: int = 7, length: int = 16, **order: Any) -> Feed:
    data = {"dir": str(folder.folder), "sequence_length": length, "order": {"weights": WEIGHTS, **order}}
    return Feed(DataSettings.model_validate(data), seed)


def state(feed: Feed, order: RunOrder, step: int) -> RunState:
    """What a checkpoint at a step holds."""
    sample = order.segments[-1].sample(step)
    return RunState(
        model={},
        layout={},
        precision="fp32",
        next_sample=sample,
        targets=0,
        plan_hash=feed.hash_at(sample),
        source_samples=dict(feed.counts(sample)),
        segments=order.segments,
        tokenizer_hash="",
    )


def windows(feed: Feed, first: int, count: int) -> list[tuple[int, int]]:
    ((sources, found),) = feed.places([first], count)
    return list(zip(sources.tolist(), found.tolist(), strict=True))


def resumed(feed: Feed, state: RunState, step: int, batch: int = 8, allowed: tuple[str, ...] = ()) -> RunOrder:
    # As it lies in a file.
    return resumed_order(feed, RunState.model_validate_json(state.model_dump_json()), step, batch, allowed, "data")


def test_an_unchanged_run_goes_on_in_its_segment(folder: GrowingFolder) -> None:
    first = feed(folder)
    order = fresh_order(first, 8)
    second = feed(folder)
    again = resumed(second, state(first, order, 5), 5)
    assert again == order and windows(second, 40, 30) == windows(first, 40, 30)


@pytest.mark.parametrize("change", [{"seed": 8}, {"length": 8}, {"weights": {"web": 0.5, "code": 0.5}}], ids=str)
def test_a_changed_order_is_refused_with_the_way_to_allow_it(folder: GrowingFolder, change: dict[str, Any]) -> None:
    first = feed(folder)
    before = state(first, fresh_order(first, 8), 5)
    with pytest.raises(DataError, match=r"not those of the run up to step 5.*--allow-change data\.order"):
        resumed(feed(folder, **change), before, 5, allowed=("optimizer.peak_lr",))
    assert len(resumed(feed(folder, **change), before, 5, allowed=("data.order",)).segments) == 2


def test_shards_that_were_added_in_place_are_refused_and_may_be_allowed(folder: GrowingFolder) -> None:
    folder.publish({"web": 4, "code": 6})
    folder_before = feed_of_complete(folder)
    before = state(folder_before, fresh_order(folder_before, 8), 5)
    folder.publish(folder.tasks)
    with pytest.raises(DataError, match="not those of the run"):
        resumed(feed(folder), before, 5)
    order = resumed(feed(folder), before, 5, allowed=("data.order",))
    assert order.told is not None and "28 of web, 12 of code" in order.told


def feed_of_complete(folder: GrowingFolder) -> Feed:
    """Of a folder with fewer shards, said to be complete."""
    write_manifest(folder.folder, replace(read_manifest(folder.folder), complete=True))
    return feed(folder)


def test_a_new_blend_goes_on_behind_what_each_source_gave_and_resumes_twice(folder: GrowingFolder) -> None:
    first = feed(folder)
    order = fresh_order(first, 8)
    before = windows(first, 0, 40)
    blend: dict[str, Any] = {"weights": {"web": 0.2, "code": 0.8}}
    second = feed(folder, **blend)
    order = resumed(second, state(first, order, 5), 5, allowed=("data.order.weights",))
    found = before + windows(second, 40, 24)
    assert len(set(found)) == 64  # no window twice
    assert dict(second.counts(64)) == {"web": 28 + 5, "code": 12 + 19}
    third = feed(folder, **blend)
    again = resumed(third, state(second, order, 8), 8)
    assert again.segments == order.segments and again.told is None
    assert windows(third, 64, 20) == windows(second, 64, 20)


def test_a_batch_of_another_size_goes_on_in_the_same_order(folder: GrowingFolder) -> None:
    first, second = feed(folder), feed(folder)
    order = resumed(second, state(first, fresh_order(first, 8), 5), 5, batch=16)
    last = order.segments[-1]
    assert (last.first_step, last.first_sample, last.sample(6)) == (5, 40, 56)
    assert windows(second, 40, 50) == windows(first, 40, 50)
    assert order.told is not None and "16 sequences; the order of samples goes on as it was" in order.told


def test_a_new_order_needs_to_know_where_each_source_stood(folder: GrowingFolder) -> None:
    first = feed(folder)
    before = state(first, fresh_order(first, 8), 5).model_copy(update={"source_samples": {}})
    assert len(resumed(feed(folder), before, 5, batch=16).segments) == 2
    with pytest.raises(DataError, match="step 5 does not say how many samples each source had given"):
        resumed(feed(folder, seed=8), before, 5, allowed=("run.seed",))
