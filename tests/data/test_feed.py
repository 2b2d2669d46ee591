"""The feed: several sources, growing folders, resumes; the same rows whatever the timing and the number of ranks."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.data import follow
from pretrain.data.batches import Batches, training_batches
from pretrain.data.feed import Feed
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.data.validation import validation_batches, validation_by_source
from pretrain.errors import DataError
from tests.data.sources import GrowingFolder

GLOBAL, LENGTH = 8, 16
WEIGHTS = {"web": 0.7, "code": 0.3}
ERAS: dict[str, Any] = {"method": "eras", "era_tokens": 20 * LENGTH}


@pytest.fixture
def folder(tmp_path: Path) -> GrowingFolder:
    return GrowingFolder(tmp_path, {"web": 40, "code": 30})


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "POLL_S", 0.005)


def settings(folder: GrowingFolder, manifest: str = "finished", **order: Any) -> DataSettings:
    return DataSettings.model_validate(
        {"dir": str(folder.folder), "sequence_length": LENGTH, "manifest": manifest, "order": order}
    )


def opened(data: DataSettings, *, rank: int = 0, size: int = 1, first: int = 0) -> Batches:
    return training_batches(
        data,
        seed=7,
        global_batch_sequences=GLOBAL,
        micro_batch_sequences=1,
        data_rank=rank,
        data_size=size,
        first_step=first,
    )


def rows(batches: Batches) -> list[tuple[int, ...]]:
    """The next step: number, tokens and labels of each row."""
    return [
        (int(batch.inputs["sample"]), *batch.inputs["tokens"][0].tolist(), *batch.labels[0].tolist())
        for batch in next(batches)
    ]


def steps(data: DataSettings, count: int, **where: int) -> list[list[tuple[int, ...]]]:
    with opened(data, **where) as batches:
        return [rows(batches) for _ in range(count)]


def test_rows_are_the_windows_that_the_plan_names(folder: GrowingFolder) -> None:
    folder.publish(folder.tasks)
    data = settings(folder, weights=WEIGHTS)
    plan = Feed(data, 7).plan
    streams = [TokenShards.open(folder.folder, "train", source=name) for name in ("web", "code")]
    found = [row for step in steps(data, 6) for row in step]
    for n, row in enumerate(found):
        source, _, window = plan.sample(n)
        assert row[0] == n
        assert list(row[1 : LENGTH + 1]) == streams[source].read(window * LENGTH, (window + 1) * LENGTH).tolist()
    with opened(data) as batches:
        sources = (batch.sources for _ in range(6) for batch in next(batches))
        told = [(int(each.numbers), each.count) for each in sources if each]
    assert told == [(plan.sample(n)[0], 2) for n in range(6 * GLOBAL)]


def test_the_union_of_ranks_is_one_sequence_over_resumes_at_other_sizes(folder: GrowingFolder) -> None:
    folder.publish(folder.tasks)
    data = settings(folder, weights=WEIGHTS)
    expected = [row for step in steps(data, 30) for row in step]
    found = []
    for first, size in ((0, 1), (10, 4), (20, 2)):
        parts = [steps(data, 10, rank=rank, size=size, first=first) for rank in range(size)]
        found += [row for step in range(10) for part in parts for row in part[step]]
    assert found == expected


@pytest.mark.parametrize("schedule", [[1, 2, 3, 4, 5, 6], [2, 6], [1, 1, 5, 6], [6]], ids=str)
def test_training_from_a_growing_folder_is_that_from_the_finished_one(
    folder: GrowingFolder, schedule: list[int], impatient: None
) -> None:
    folder.publish(folder.tasks)
    data = settings(folder, "follow", weights=WEIGHTS, **ERAS)
    with opened(data) as batches:
        hashes, expected = [], []
        for _ in range(40):
            hashes.append(batches.plan_hash)
            expected.append(rows(batches))
    folder.publish(schedule[0])

    def grow() -> None:
        for tasks in schedule[1:]:
            time.sleep(0.02)
            folder.publish(tasks)

    grower, found = threading.Thread(target=grow), []
    with folder.preparing(), opened(data, rank=0) as batches:
        grower.start()
        for step in range(40):
            assert batches.plan_hash == hashes[step]
            found.append(rows(batches))
        grower.join()
    assert found == expected


def test_a_source_that_grows_alone_holds_the_others_back_and_changes_nothing(
    folder: GrowingFolder, impatient: None
) -> None:
    folder.publish(folder.tasks)
    data = settings(folder, "follow", weights=WEIGHTS, **ERAS)
    expected = steps(data, 30)
    folder.publish({"web": 1, "code": 6})
    told: list[str] = []
    feed = Feed(data, 7, told.append)
    assert feed.plan.missing(400) == "web"
    with folder.preparing():
        threading.Timer(0.1, folder.publish, [6]).start()
        assert steps(data, 30) == expected


def test_a_wait_is_told_and_a_dead_preparation_ends_it(folder: GrowingFolder, impatient: None) -> None:
    manifest, told = folder.publish(1), []
    with folder.preparing():
        cancelled = threading.Event()
        threading.Timer(0.15, cancelled.set).start()
        with pytest.raises(follow.Waiting):
            follow.wait_for_growth(folder.folder, manifest, "more of source web", told.append, cancelled)
    assert len(told) >= 1 and told[0].startswith("waiting for more of source web")
    with pytest.raises(DataError, match=r"stopped before its end.*start `pretrain prepare` with the same config again"):
        follow.wait_for_growth(folder.folder, manifest, "more", told.append, threading.Event())
    (folder.folder / follow.LOCK_NAME).unlink()
    with (
        opened(settings(folder, "follow", weights=WEIGHTS, **ERAS)) as batches,
        pytest.raises(DataError, match="stopped before its end"),
    ):
        for _ in range(1000):
            next(batches)


def test_closing_ends_a_wait(folder: GrowingFolder, impatient: None) -> None:
    folder.publish(1)
    with folder.preparing():
        batches = opened(settings(folder, "follow", weights=WEIGHTS, **ERAS))
        batches.close()
    assert not batches._thread.is_alive()


def test_an_unfinished_folder_is_refused_unless_it_is_followed(folder: GrowingFolder) -> None:
    folder.publish(1)
    with pytest.raises(DataError, match=r"preparation has not finished.*data\.manifest=follow"):
        opened(settings(folder, weights=WEIGHTS, **ERAS))


def test_validation_of_a_followed_folder_does_not_depend_on_when_one_looks(folder: GrowingFolder) -> None:
    data = settings(folder, "follow", weights=WEIGHTS, **ERAS)
    found = []
    for tasks in (2, 4, 6):
        folder.publish(tasks)
        batches = validation_batches(data, sequences=None, micro_batch_sequences=2, data_rank=0, data_size=1)
        found.append(torch.cat([batch.labels for batch in batches]))
    assert all(torch.equal(found[0], other) for other in found[1:])
    everything = validation_batches(
        settings(folder, weights=WEIGHTS), sequences=None, micro_batch_sequences=2, data_rank=0, data_size=1
    )
    assert len(found[0]) < sum(len(batch.labels) for batch in everything)


def test_validation_waits_for_the_first_era_of_every_source(folder: GrowingFolder, impatient: None) -> None:
    data = settings(folder, "follow", weights=WEIGHTS, **{**ERAS, "era_tokens": 70 * LENGTH})
    where = {"micro_batch_sequences": 2, "data_rank": 0, "data_size": 1}
    folder.publish(6)
    expected = validation_batches(data, sequences=None, **where)
    folder.publish({"web": 1, "code": 0})
    with folder.preparing():
        threading.Timer(0.05, folder.publish, [3]).start()
        found = validation_batches(data, sequences=None, **where)
    assert torch.equal(torch.cat([b.labels for b in found]), torch.cat([b.labels for b in expected]))


def test_no_validation_micro_batch_holds_two_sources_and_all_targets_are_there(folder: GrowingFolder) -> None:
    folder.publish(folder.tasks)
    data = settings(folder, weights=WEIGHTS)
    found = validation_by_source(data, sequences=None, micro_batch_sequences=4, data_rank=0, data_size=1)
    assert list(found) == ["web", "code"]
    for name, batches in found.items():
        stream = TokenShards.open(folder.folder, "validation", source=name)
        labels = torch.cat([batch.labels.flatten() for batch in batches])
        tokens = stream.read(0, stream.num_tokens)
        expected = tokens[1:][tokens[:-1] != 0]
        assert sorted(labels[labels >= 0].tolist()) == sorted(expected.tolist())


def test_counts_of_sources_are_those_of_the_rows(folder: GrowingFolder) -> None:
    folder.publish(folder.tasks)
    with opened(settings(folder, weights=WEIGHTS), first=5) as batches:
        assert batches.source_samples == {"web": 28, "code": 12}
        next(batches)
        assert sum(batches.source_samples.values()) == batches.next_sample == 48
        assert batches.source_epochs["web"] == pytest.approx(np.float64(34) / batches._feed.plan.sources[0].samples)
