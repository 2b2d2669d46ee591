"""Batches: the same samples for every data-parallel size, and at every resume."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain.data.batches import Batches, training_batches
from pretrain.data.micro_batch import MicroBatch
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.data.validation import validation_batches
from pretrain.errors import ConfigError, DataError
from tests.data.folders import counted_pairs, text_documents, write_folder

GLOBAL = 8


@pytest.fixture
def data(tmp_path: Path) -> DataSettings:
    write_folder(tmp_path, text_documents(120, seed=1), text_documents(20, seed=2))
    return DataSettings(dir=str(tmp_path), sequence_length=16)


@pytest.fixture
def pairs(tmp_path: Path) -> DataSettings:
    given = counted_pairs(300, seed=1)
    write_folder(tmp_path, given[:250], given[250:], kind="pairs", vocab_size=60_000)
    return DataSettings(dir=str(tmp_path), objective="seq2seq", sequence_length=16, source_length=12)


def opened(
    data: DataSettings,
    *,
    rank: int = 0,
    size: int = 1,
    micro: int = 2,
    first: int = 0,
    seed: int = 7,
    total: int = GLOBAL,
) -> Batches:
    return training_batches(
        data,
        seed=seed,
        global_batch_sequences=total,
        micro_batch_sequences=micro,
        data_rank=rank,
        data_size=size,
        first_step=first,
    )


def joined(micro_batches: list[MicroBatch]) -> dict[str, torch.Tensor]:
    """All rows of a step, copied out of the ring."""
    fields = {name: torch.cat([batch.inputs[name] for batch in micro_batches]) for name in micro_batches[0].inputs}
    return {**fields, "labels": torch.cat([batch.labels for batch in micro_batches])}


def steps(data: DataSettings, count: int, **where: int) -> list[dict[str, torch.Tensor]]:
    with opened(data, **where) as batches:
        return [joined(next(batches)) for _ in range(count)]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["data", "pairs"])
@pytest.mark.parametrize("size", [2, 4])
def test_the_union_over_data_ranks_is_the_batch_of_one_rank(
    kind: str, size: int, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    whole = steps(data, 5)
    parts = [steps(data, 5, rank=rank, size=size, micro=1) for rank in range(size)]
    for step in range(5):
        union = {name: torch.cat([part[step][name] for part in parts]) for name in whole[step]}
        assert same(union, whole[step])


@pytest.mark.parametrize("step", [1, 6, 40])
def test_resuming_at_a_step_gives_what_going_on_would_have_given(data: DataSettings, step: int) -> None:
    went_on = steps(data, step + 3)[step:]
    assert all(same(*both) for both in zip(went_on, steps(data, 3, first=step), strict=True))


def test_resuming_at_another_data_parallel_size_repeats_and_skips_no_sample(data: DataSettings) -> None:
    before = steps(data, 4, size=1)
    after = [steps(data, 4, rank=rank, size=2, first=4) for rank in range(2)]
    numbers = [n for step in before for n in step["sample"].tolist()]
    numbers += [n for step in range(4) for part in after for n in part[step]["sample"].tolist()]
    assert numbers == list(range(8 * GLOBAL))


def test_an_epoch_holds_every_window_once(data: DataSettings) -> None:
    with opened(data, micro=1, total=1) as batches:
        windows = [tuple(joined(next(batches))["tokens"].flatten().tolist()) for _ in range(2 * batches.num_samples)]
        assert batches.epoch == 2
    first, second = windows[: len(windows) // 2], windows[len(windows) // 2 :]
    assert sorted(first) == sorted(second) and first != second and len(set(first)) == len(first)


def test_the_asked_samples_of_a_step_are_those_delivered(data: DataSettings) -> None:
    shards = TokenShards.open(data.folder, "train")
    with opened(data, first=3) as batches:
        windows = batches.samples(3)
        delivered = joined(next(batches))["tokens"]
    for window, row in zip(windows.tolist(), delivered, strict=True):
        assert row.tolist() == shards.read(window * 16, window * 16 + 16).tolist()


def test_micro_batches_have_the_shapes_of_the_contract(pairs: DataSettings) -> None:
    with opened(pairs, micro=4, rank=1, size=2) as batches:
        micro_batches = next(batches)
    assert len(micro_batches) == 1
    shapes = {name: tuple(tensor.shape) for name, tensor in micro_batches[0].inputs.items()}
    assert shapes == {
        "tokens": (4, 16),
        "positions": (4, 16),
        "documents": (4, 16),
        "source_tokens": (4, 12),
        "source_documents": (4, 12),
        "sample": (4,),
    }
    assert {tensor.dtype for tensor in micro_batches[0].inputs.values()} == {torch.int64}
    assert micro_batches[0].targets == int((micro_batches[0].labels >= 0).sum()) > 0


def test_a_step_stays_valid_until_the_next_is_asked_for(data: DataSettings) -> None:
    with opened(data.model_copy(update={"prefetch": 1})) as batches:
        for step in range(12):
            held = next(batches)
            copy = joined(held)
            batches._thread.join(timeout=0.01)  # the thread gets its chance to overwrite
            assert same(joined(held), copy), f"step {step}"


def test_tokens_seen_counts_all_ranks(data: DataSettings) -> None:
    with opened(data, size=2, first=5) as batches:
        assert batches.tokens_seen == 5 * GLOBAL * 16
        next(batches)
        assert (
            batches.tokens_seen == 6 * GLOBAL * 16 and batches.step == 6 and batches.total_wait_s >= batches.wait_s >= 0
        )


@pytest.mark.parametrize(
    "change",
    [{"sequence_length": 8}, {"document_mask": "cross"}, {"seed": 8}, {"corpus": 1}],
    ids=lambda c: next(iter(c)),
)
def test_the_plan_hash_shows_a_change_of_the_order(data: DataSettings, change: dict[str, object]) -> None:
    with opened(data) as batches:
        before = batches.plan_hash
    with opened(data, rank=1, size=2, micro=1, first=9) as batches:
        assert batches.plan_hash == before  # not where and when it is read
    change = dict(change)
    if change.pop("corpus", None):
        write_folder(data.folder, text_documents(120, seed=9), text_documents(20, seed=2))
    seed = int(str(change.pop("seed", 7)))
    with opened(data.model_copy(update=change), seed=seed) as batches:
        assert batches.plan_hash != before


def test_an_error_of_the_thread_reaches_the_consumer(data: DataSettings) -> None:
    for path in (data.folder / "train").glob("*.tokens"):
        content = bytearray(path.read_bytes())
        content[70] ^= 1
        path.write_bytes(content)
    with opened(data) as batches:
        for _ in range(2):  # and again, should it be asked again
            with pytest.raises(DataError, match="damaged token shard"):
                next(batches)


def test_closing_ends_the_thread_whatever_it_waits_for(data: DataSettings) -> None:
    before = threading.active_count()
    for taken in (0, 1, 5):
        batches = opened(data)
        for _ in range(taken):
            next(batches)
        batches.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_a_batch_that_does_not_divide_is_refused(data: DataSettings) -> None:
    with pytest.raises(ConfigError, match=r"train\.global_batch_tokens.*multiple of 6"):
        opened(data, micro=3, size=2)


def test_a_corpus_shorter_than_a_sequence_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, [[5, 6, 7]], [[5]])
    with pytest.raises(DataError, match=r"shorter than one sequence of 16.*lower data\.sequence_length"):
        opened(DataSettings(dir=str(tmp_path), sequence_length=16))


def test_an_empty_validation_split_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path, text_documents(5, seed=1), [])
    with pytest.raises(DataError, match=r"validation split is empty.*validation_fraction"):
        validation_batches(
            DataSettings(dir=str(tmp_path), sequence_length=4),
            sequences=None,
            micro_batch_sequences=2,
            data_rank=0,
            data_size=1,
        )


@pytest.mark.parametrize("kind", ["data", "pairs"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_validation_covers_every_target_once_over_all_ranks(
    kind: str, size: int, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(kind)
    found = [
        validation_batches(data, sequences=None, micro_batch_sequences=4, data_rank=rank, data_size=size)
        for rank in range(size)
    ]
    assert len({len(batches) for batches in found}) == 1
    labels = torch.cat([batch.labels.flatten() for batches in found for batch in batches])
    alone = validation_batches(data, sequences=None, micro_batch_sequences=1, data_rank=0, data_size=1)
    expected = torch.cat([batch.labels.flatten() for batch in alone])
    assert sorted(labels[labels >= 0].tolist()) == sorted(expected[expected >= 0].tolist())
    assert all(batch.labels.shape == (4, 16) for batches in found for batch in batches)


def test_rows_that_fill_up_validation_hold_no_target(data: DataSettings) -> None:
    found = validation_batches(data, sequences=5, micro_batch_sequences=4, data_rank=0, data_size=1)
    assert len(found) == 2
    filler = found[1].inputs["sample"] == -1
    assert filler.tolist() == [False, True, True, True]
    assert (found[1].labels[filler] == -100).all() and (found[1].inputs["documents"][filler] == -1).all()


def test_a_part_of_the_validation_set_is_spread_over_it_and_fixed(data: DataSettings) -> None:
    def samples(count: int | None) -> list[int]:
        found = validation_batches(data, sequences=count, micro_batch_sequences=1, data_rank=0, data_size=1)
        return [int(batch.inputs["sample"]) for batch in found]

    everything = samples(None)
    some = samples(6)
    assert some == samples(6) and len(some) == 6 and everything == list(range(len(everything)))
    assert np.diff(some).min() >= len(everything) // 6 and samples(10**6) == everything
