"""The order of samples: a permutation each epoch, computed and not stored."""

import numpy as np
import pytest

from pretrain.data.sample_order import Permutation, SampleOrder, plan_hash
from pretrain.data.source_order import ErasOfSource


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097, 65_536])
def test_it_is_a_permutation(size: int) -> None:
    assert sorted(Permutation(size, "key")(np.arange(size)).tolist()) == list(range(size))


@pytest.mark.parametrize("index", [-1, 5, 8])
def test_an_index_that_is_not_in_range_is_an_error_and_no_endless_walk(index: int) -> None:
    with pytest.raises(AssertionError, match=r"not within 0 \.\. 4"):
        Permutation(5, "key")(np.array([0, index]))


def test_positions_that_do_not_ascend_are_an_error_and_no_endless_loop() -> None:
    with pytest.raises(AssertionError):
        SampleOrder(10, 3, "train").samples_at(np.array([15, 3, 12]))


@pytest.mark.parametrize("width", [1, 3])
def test_an_era_that_is_too_narrow_is_an_error_and_no_endless_loop(width: int) -> None:
    order = ErasOfSource(10, 4, 3, "train")
    order._permutation = lambda epoch, number: Permutation(width, "key")  # type: ignore[assignment]
    with pytest.raises(AssertionError):
        order.samples_at(np.arange(20))


def test_small_permutations_are_all_reached_about_equally() -> None:
    counts: dict[tuple[int, ...], int] = {}
    for key in range(2400):
        image = tuple(Permutation(4, f"key {key}")(np.arange(4)).tolist())
        counts[image] = counts.get(image, 0) + 1
    assert len(counts) == 24 and min(counts.values()) > 50 and max(counts.values()) < 150  # 100 each, sigma 9.8


def test_neighbours_do_not_stay_neighbours() -> None:
    image = Permutation(100_000, "key")(np.arange(100_000))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(np.arange(100_000), image)[0, 1]) < 0.02


def test_sizes_beyond_32_bits_stay_in_range_and_apart() -> None:
    size = 5 * 10**9 + 7
    image = Permutation(size, "key")(np.arange(size - 2000, size))
    assert image.min() >= 0 and image.max() < size and image.max() > 2**32 and len(set(image.tolist())) == 2000


def test_the_order_is_the_same_on_every_machine() -> None:
    # Written down once: a change would silently reorder the data of every run that is resumed.
    assert SampleOrder(1000, 1234, "train").samples(998, 4).tolist() == [96, 567, 33, 250]


def test_every_epoch_holds_every_sample_once_in_an_order_of_its_own() -> None:
    order = SampleOrder(257, seed=3, purpose="train")
    epochs = [order.samples(epoch * 257, 257).tolist() for epoch in range(3)]
    assert all(sorted(epoch) == list(range(257)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_any_cut_gives_the_same_sequence() -> None:
    order = SampleOrder(100, seed=3, purpose="train")
    whole = order.samples(0, 350)
    pieces = [order.samples(start, 7) for start in range(0, 350, 7)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    assert order.samples(42, 0).tolist() == []
    assert [order.epoch(position) for position in (0, 99, 100, 299)] == [0, 0, 1, 2]


def test_seed_and_purpose_each_change_the_order() -> None:
    orders = [SampleOrder(100, seed, purpose).samples(0, 100).tolist() for seed in (1, 2) for purpose in ("a", "b")]
    assert len({tuple(order) for order in orders}) == 4


def test_the_plan_hash_depends_on_every_fact() -> None:
    facts = {"shards": "abc", "seed": 1, "sequence_length": 256}
    assert plan_hash(facts) == plan_hash(dict(reversed(facts.items())))
    assert len({plan_hash({**facts, name: "other"}) for name in facts} | {plan_hash(facts)}) == 4
