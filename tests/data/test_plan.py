"""The plan: the sample at every position, the same for any ranks, resumes, timings and sizes."""

import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.manifest import SplitRecord, read_manifest, write_manifest
from pretrain.data.plan import Plan, causal_samples, check_epochs
from pretrain.data.plan_segments import first_segment, next_segment, segment_of
from pretrain.data.sample_order import Permutation, SampleOrder
from pretrain.data.settings import DataSettings
from pretrain.errors import ConfigError, DataError
from tests.data.plans import plan_of, virtual_manifest

SOURCES = {"web": [4000, 3000, 5001], "code": [2000, 2000], "books": [900]}
WEIGHTS = {"web": 0.6, "code": 0.3, "books": 0.1}
ERAS: dict[str, Any] = {"method": "eras", "era_tokens": 512}


def sequence(plan: Plan, start: int, count: int) -> list[tuple[int, int, int]]:
    return list(zip(*(part.tolist() for part in plan.samples(start, count)), strict=True))


@pytest.mark.parametrize("order", [{}, {"weights": WEIGHTS}, {"weights": WEIGHTS, **ERAS}], ids=["size", "mix", "eras"])
def test_every_epoch_of_every_source_is_a_permutation_and_no_two_are_alike(order: dict[str, Any]) -> None:
    plan = plan_of(virtual_manifest(SOURCES), **order)
    found = np.array(sequence(plan, 0, 12_000))
    for number, source in enumerate(plan.sources):
        mine = found[found[:, 0] == number]
        epochs = [mine[mine[:, 1] == epoch, 2].tolist() for epoch in range(mine[-1, 1])]
        assert len(epochs) >= 3, source.name
        assert all(sorted(epoch) == list(range(source.samples)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_a_single_source_keeps_the_order_of_a_run_without_sources() -> None:
    plan = plan_of(virtual_manifest({"main": [16_001]}), seed=1234)
    assert plan.samples(998, 4)[2].tolist() == SampleOrder(1000, 1234, "train").samples(998, 4).tolist()


def test_without_weights_all_sources_end_their_epoch_together() -> None:
    plan = plan_of(virtual_manifest(SOURCES))
    total = sum(source.samples for source in plan.sources)
    assert plan.epochs(3 * total) == {"web": 3.0, "code": 3.0, "books": 3.0}


def test_the_union_of_all_ranks_is_one_sequence_at_any_size_and_after_any_resumes() -> None:
    plan = plan_of(virtual_manifest(SOURCES), weights=WEIGHTS)
    global_batch, steps = 8, 1000
    expected = sequence(plan, 0, global_batch * steps)
    for sizes in [(1, 8, 2), (8, 4, 1), (2, 1, 4), (4, 2, 8)]:
        found: list[tuple[int, int, int]] = []
        # Two resumes: the state is the position alone, so a fresh plan knows all that there is to know.
        for size, (first, last) in zip(sizes, pairwise([0, 311, 702, steps]), strict=True):
            resumed, rows = plan_of(virtual_manifest(SOURCES), weights=WEIGHTS), global_batch // size
            assert resumed.hash_at(first * global_batch) == plan.hash_at(first * global_batch)
            for step in range(first, last):
                for rank in range(size):
                    found += sequence(resumed, step * global_batch + rank * rows, rows)
        assert found == expected


def test_eras_come_in_the_order_of_the_stream_and_are_shuffled_within() -> None:
    plan = plan_of(virtual_manifest({"main": [16 * 100 + 1]}), **ERAS)
    for epoch in range(2):
        windows = plan.samples(epoch * 100, 100)[2]
        assert [sorted(windows[at : at + 32].tolist()) for at in range(0, 100, 32)] == [
            list(range(at, min(at + 32, 100))) for at in range(0, 100, 32)
        ]
        assert windows.tolist() != list(range(100))


@pytest.mark.parametrize("known", [[1, 1, 1], [2, 2, 1], [3, 1, 1], [2, 1, 0], [0, 0, 0]])
def test_a_growing_manifest_gives_the_sequence_and_the_hashes_of_the_finished_one(known: list[int]) -> None:
    finished = plan_of(virtual_manifest(SOURCES), weights=WEIGHTS, **ERAS)
    shards = {name: SOURCES[name][:count] for name, count in zip(SOURCES, known, strict=True)}
    growing = plan_of(virtual_manifest(shards, complete=False), weights=WEIGHTS, **ERAS)
    ready = next(n for n in range(2000) if growing.missing(n + 1))
    assert sequence(growing, 0, ready) == sequence(finished, 0, ready)
    assert all(growing.hash_at(n) == finished.hash_at(n) for n in range(0, ready + 1, 7))
    assert finished.missing(10**6) is None and (ready > 50) == (min(known) > 0)


def test_a_shard_that_changes_behind_what_was_read_is_no_change_of_the_order() -> None:
    before = plan_of(virtual_manifest({"main": [1000, 1000]}), **ERAS)
    more = plan_of(virtual_manifest({"main": [1000, 1000, 1000]}), **ERAS)
    other = plan_of(virtual_manifest({"main": [1000, 1000]}, salt=9), **ERAS)
    assert before.hash_at(60) == more.hash_at(60) and before.hash_at(60) != other.hash_at(60)
    assert before.hash_at(200) != more.hash_at(200)  # the second epoch knows where the first one ends


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"sequence_length": 8},
        {"weights": {"web": 0.5, "code": 0.4, "books": 0.1}},
        ERAS,
        {"stages": [{"tokens": 160, "weights": WEIGHTS}, {"weights": {"web": 1.0}}], "weights": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_hash_shows_every_change_of_the_order(change: dict[str, object]) -> None:
    manifest = virtual_manifest(SOURCES)
    before = plan_of(manifest, weights=WEIGHTS)
    changed: dict[str, Any] = {"weights": WEIGHTS, **change}
    assert plan_of(manifest, **changed).hash_at(5) != before.hash_at(5)
    assert before.hash_at(5) == before.hash_at(5000)
    assert plan_of(virtual_manifest(SOURCES, salt=3), weights=WEIGHTS).hash_at(5) != before.hash_at(5)


def test_more_than_four_sources_are_dealt_otherwise_than_once_and_the_hash_says_so() -> None:
    many = virtual_manifest({name: [4000] for name in "abcdef"})
    equal, four = dict.fromkeys("abcdef", 1 / 6), {**dict.fromkeys("abcd", 0.25), "e": 0.0, "f": 0.0}
    orders: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        ({"weights": equal}, True),
        ({"weights": four}, False),
        ({"stages": [{"tokens": 160, "weights": four}, {"weights": equal}]}, True),
    ]
    for order, windowed in orders:
        plan = plan_of(many, **order)
        assert ("dealing" in plan.facts) == windowed
        assert sequence(plan.as_of(dict(plan.facts)), 0, 50) == sequence(plan, 0, 50)
        older = {name: fact for name, fact in plan.facts.items() if name != "dealing"}
        if windowed:
            with pytest.raises(DataError, match="dealt to more than four sources as an earlier version"):
                plan.as_of(older)
            assert replace(plan, facts=older).hash_at(5) != plan.hash_at(5)
        else:
            assert plan.as_of(older).hash_at(5) == plan.hash_at(5)
    assert "dealing" not in plan_of(virtual_manifest(SOURCES)).facts


def test_stages_change_the_blend_at_their_tokens() -> None:
    stages = [
        {"tokens": 16 * 100, "weights": {"web": 1.0}},
        {"tokens": 16 * 50, "weights": {"code": 0.5, "books": 0.5}},
        {"weights": WEIGHTS},
    ]
    plan = plan_of(virtual_manifest(SOURCES), stages=stages)
    assert plan.counts(100) == {"web": 100, "code": 0, "books": 0}
    assert plan.counts(150) == {"web": 100, "code": 25, "books": 25}
    assert plan.counts(250)["web"] == 160


# --- figures at scale ---------------------------------------------------------------------------------------------------


def feistel(value: int, size: int, key: str) -> int:
    """The permutation again, in Python integers."""
    import xxhash

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    bits = max((size - 1).bit_length(), 2)
    low, high = bits - bits // 2, bits // 2
    while True:
        left, right = value >> low, value % (1 << low)
        for number in range(6):
            round_key = xxhash.xxh3_64_intdigest(f"{key}/round={number}".encode())
            if number % 2 == 0:
                left ^= mix(right ^ round_key) % (1 << high)
            else:
                right ^= mix(left ^ round_key) % (1 << low)
        value = left << low | right
        if value < size:
            return value


def test_the_permutation_is_that_of_python_integers() -> None:
    for size in (5, 1000, 5 * 10**9 + 1):
        some = np.array([0, 3, size - 1])
        assert Permutation(size, "k")(some).tolist() == [feistel(int(n), size, "k") for n in some]


def test_ten_trillion_tokens_are_opened_in_10_mb_and_sample_three_billion_is_right(tmp_path: Path) -> None:
    shards = 37_000
    write_manifest(tmp_path, virtual_manifest({"main": [270_270_270] * shards}))
    tracemalloc.start()
    plan = plan_of(read_manifest(tmp_path), sequence_length=2048, seed=1234)
    first = plan.samples(0, 512)
    plan.hash_at(0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6, peak  # how long it takes: benchmarks/open_ten_trillion.py
    size = (270_270_270 * shards - 1) // 2048
    n = 3 * 10**9
    assert plan.sample(n) == (0, 0, feistel(n, size, "train/seed=1234/epoch=0"))
    assert plan.sample(n + size) == (0, 1, feistel(n, size, "train/seed=1234/epoch=1"))
    assert size > 2**32 and first[2].max() > 2**32


def test_a_blend_of_ten_trillion_tokens_is_right_at_sample_three_billion() -> None:
    manifest = virtual_manifest({"a": [10**13], "b": [10**12]})
    plan = plan_of(manifest, sequence_length=2048, seed=5, weights={"a": 0.25, "b": 0.75})
    n = 3 * 10**9 + 1
    source, epoch, window = plan.sample(n)
    before, after = plan.counts(n), plan.counts(n + 1)
    name = "ab"[source]
    k, size = before[name], plan.sources[source].samples
    assert after[name] == k + 1 and abs(before["a"] - n / 4) < 1
    assert (epoch, window) == (k // size, feistel(k % size, size, f"train/source={name}/seed=5/epoch={k // size}"))


# --- refusals -------------------------------------------------------------------------------------------------------------


def test_bad_blends_are_refused_by_name() -> None:
    manifest = virtual_manifest(SOURCES)
    with pytest.raises(ConfigError, match=r"data\.order\.weights\.wiki: no source of data, which has web, code, books"):
        plan_of(manifest, weights={"web": 0.5, "wiki": 0.5})
    with pytest.raises(ConfigError, match=r"has the source books too.*0 to leave it out"):
        plan_of(manifest, weights={"web": 0.5, "code": 0.5})
    with pytest.raises(ConfigError, match=r"data\.order\.stages\.1\.weights\.wiki"):
        plan_of(manifest, stages=[{"tokens": 5, "weights": WEIGHTS}, {"weights": {"wiki": 1.0}}])
    with pytest.raises(ConfigError, match=r"weights is null, but data is still growing"):
        plan_of(virtual_manifest(SOURCES, complete=False), **ERAS)
    with pytest.raises(DataError, match=r"of source books is shorter than one sequence of 1000"):
        plan_of(manifest, sequence_length=1000, weights=WEIGHTS)


def test_a_source_that_is_too_small_for_its_weight_is_told_or_refused_with_the_figures() -> None:
    plan = plan_of(virtual_manifest(SOURCES), weights=WEIGHTS)
    data = DataSettings.model_validate({"dir": "data", "sequence_length": 16, "order": {"weights": WEIGHTS}})
    told = check_epochs(data, plan, 1200)
    assert told == ("source books has 56 samples and is asked for 120: 2.14 epochs",) or len(told) == 2
    limited = data.model_copy(update={"order": data.order.model_copy(update={"max_epochs": 2.0})})
    with pytest.raises(
        DataError, match=r"books has 56 samples.*2\.14 epochs.*max_epochs=2; lower its weight to 0\.933"
    ):
        check_epochs(limited, plan, 1200)
    assert check_epochs(limited, plan, 100) == ()


# --- segments -----------------------------------------------------------------------------------------------------------


def test_a_new_blend_takes_over_behind_what_each_source_has_given() -> None:
    manifest = virtual_manifest({"web": [16_001], "code": [16_001]})
    before = plan_of(manifest, weights={"web": 0.8, "code": 0.2})
    first = first_segment(before, 8)
    after = plan_of(manifest, weights={"web": 0.1, "code": 0.9})
    second = next_segment(first, after, 4, step=50, sample=400, taken=before.counts(400))
    assert (second.first_step, second.first_sample, second.position) == (50, 400, 400)
    assert second.taken == {"web": 320, "code": 80} and second.plan_hash != first.plan_hash
    went_on = after.from_origin(second.origin)
    found = sequence(before, 0, 400) + sequence(went_on, second.place(400), 500)
    assert len(set(found)) == 900  # nothing twice: both sources go on in their permutation
    assert went_on.counts(900)["code"] == 80 + 450
    assert [segment_of((first, second), step).first_step for step in (0, 49, 50, 51)] == [0, 0, 50, 50]
    assert [second.sample(step) for step in (50, 51)] == [400, 404]


def test_a_change_of_the_sequence_length_keeps_the_tokens_that_were_read() -> None:
    manifest = virtual_manifest({"main": [64_001]})
    before, after = plan_of(manifest, **ERAS), plan_of(manifest, sequence_length=32, **ERAS)
    second = next_segment(first_segment(before, 8), after, 8, step=10, sample=80, taken=before.counts(80))
    assert (second.position, second.taken, second.first_sample) == (40, {"main": 40}, 80)
    assert after.from_origin(second.origin).sample(40)[2] >= 32  # the third era of 512 tokens, not the first


def test_a_window_needs_the_token_behind_it() -> None:
    for tokens, samples in ((0, 0), (16, 0), (17, 1), (32, 1), (33, 2)):
        manifest = virtual_manifest({"a": [tokens] if tokens else []})
        assert causal_samples(manifest.source("train", "a"), 16) == samples


def test_the_hash_of_an_era_covers_the_shard_that_holds_its_last_label() -> None:
    tokens = {
        "a": [64, 64, 64]
    }  # an era of 64 tokens ends where the second shard begins, whose first token is its last label
    hashes = []
    for changed in (None, 1, 2):
        manifest = virtual_manifest(tokens)
        shards = list(manifest.source("train", "a").shards)
        if changed is not None:
            shards[changed] = replace(shards[changed], hash="ab" * 16)
        splits = {**manifest.splits, "train": SplitRecord.of(shards)}
        plan = plan_of(replace(manifest, splits=splits), method="eras", era_tokens=64)
        hashes.append(plan.hash_at(3))
    assert hashes[0] != hashes[1] and hashes[0] == hashes[2]
