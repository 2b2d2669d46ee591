"""What `trace` says was in a step is what the batches of that step held."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.feed import Feed
from pretrain.data.manifest import SPLITS, SplitRecord, write_manifest
from pretrain.data.objectives import Rows
from pretrain.data.plan_segments import PlanSegment, first_segment
from pretrain.data.settings import DataSettings
from pretrain.data.trace import trace_samples
from tests.data.folders import counted_pairs, text_documents, write_folder


def feed_of(folder: Path, **changes: Any) -> Feed:
    data = DataSettings.model_validate({"dir": str(folder), "sequence_length": 16, **changes})
    feed = Feed(data, seed=3)
    return feed.enter(first_segment(feed.plan, 4))


def rows_of(feed: Feed, first: int, count: int) -> Rows:
    rows = Rows.empty(count, feed.objective.widths, feed.objective.sequence_length)
    feed.objective.lay_out(rows)
    ((sources, windows),) = feed.places([first], count)
    feed.fill((sources, windows), rows)
    return rows


@pytest.mark.parametrize("order", [{}, {"method": "eras", "era_tokens": 100}], ids=["shuffle", "eras"])
def test_the_traced_documents_of_a_window_are_its_tokens(tmp_path: Path, order: dict[str, Any]) -> None:
    documents = text_documents(50, 1)
    write_folder(tmp_path, documents, documents[:2])
    feed = feed_of(tmp_path, order=order)
    stream = feed.streams[0]
    rows = rows_of(feed, 40, 8)
    for row, traced in enumerate(trace_samples(feed, 40, 8)):
        ids = [stream.read(p.start + p.first_token, p.start + p.last_token) for p in traced.documents]
        joined = np.concatenate(ids)
        np.testing.assert_array_equal(joined[:-1], rows.fields["tokens"][row])
        assert joined[-1] == rows.labels[row, -1] or rows.labels[row, -1] == -100
        for part in traced.documents:
            whole = [*documents[int(part.file[6:12]) + part.number], 0]
            assert part.length == len(whole)
            assert stream.read(part.start, part.start + part.length).tolist() == whole
        assert traced.sample == 40 + row and traced.epoch == (40 + row) // feed.plan.sources[0].samples


def test_the_traced_pairs_of_a_row_are_its_pairs(tmp_path: Path) -> None:
    write_folder(tmp_path, counted_pairs(60, 1), counted_pairs(3, 2), kind="pairs", vocab_size=60_000)
    feed = feed_of(tmp_path, objective="seq2seq", source_length=16)
    rows = rows_of(feed, 3, 6)
    for row, traced in enumerate(trace_samples(feed, 3, 6)):
        numbers = rows.fields["source_documents"][row]
        firsts = [rows.fields["source_tokens"][row][numbers == at][0] for at in range(int(numbers.max()) + 1)]
        stored = [feed.streams[0].read(part.start, part.start + 1)[0] for part in traced.documents]
        assert stored == firsts


def test_a_segment_under_another_blend_order_and_seed_is_recalled(tmp_path: Path) -> None:
    whole = write_folder(tmp_path, text_documents(60, 1), text_documents(4, 2))
    splits = {
        split: SplitRecord.of(
            [replace(shard, source="ab"[at % 2]) for at, shard in enumerate(whole.splits[split].shards)]
        )
        for split in SPLITS
    }
    write_manifest(tmp_path, replace(whole, sources=("a", "b"), splits=splits))
    first = {"weights": {"a": 0.8, "b": 0.2}, "method": "eras", "era_tokens": 100}
    before = feed_of(tmp_path, order=first)
    kept = PlanSegment.model_validate_json(before.segment.model_dump_json())
    data = DataSettings.model_validate({"dir": str(tmp_path), "sequence_length": 16})
    later = Feed(data, seed=99).recall(kept)
    assert list(trace_samples(later, 0, 40)) == list(trace_samples(before, 0, 40))
    assert later.hash_at(0) == kept.plan_hash
    by_size = feed_of(tmp_path)
    recalled = feed_of(tmp_path, order=first).recall(by_size.segment)
    assert list(trace_samples(recalled, 5, 20)) == list(trace_samples(by_size, 5, 20))
