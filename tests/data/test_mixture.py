"""The blend of sources: exact at every prefix, whatever the weights and stages."""

import itertools

import numpy as np
import pytest

from pretrain.data.mixture import CHUNK, RESOLUTION, Blend, Mixture, Stage, integer_weights


def random_weights(random: np.random.Generator, sources: int, width: int = 0) -> tuple[int, ...]:
    weights = random.random(sources) ** random.choice([1, 4])
    weights = random.permutation([*weights, *[0.0] * (width - sources)])
    return integer_weights([float(weight) for weight in weights])


def deviations(stages: list[Stage], upto: int) -> np.ndarray:
    """(upto, D) how far the counts of each prefix are from the exact ones."""
    sources, _ = Mixture(stages).slots(0, upto)
    width = len(stages[0].weights)
    counts = np.cumsum(sources[:, None] == np.arange(width), axis=0)
    shares = np.empty((upto, width))
    at = 0
    for stage in stages:
        end = upto if stage.length is None else min(upto, at + stage.length)
        shares[at:end] = np.array(stage.weights) / sum(stage.weights)
        at = end
    return counts - np.cumsum(shares, axis=0)


@pytest.mark.parametrize("sources", [1, 2, 3, 4])
def test_up_to_four_sources_are_within_one_of_exact_at_every_prefix(sources: int) -> None:
    random = np.random.default_rng(sources)
    for _ in range(40):
        weights = random_weights(random, sources)
        assert Blend(weights).bound < 1
        assert np.abs(deviations([Stage(None, weights)], 3000)).max() < 1


def test_a_weight_of_a_millionth_is_served_once_in_a_million() -> None:
    blend = Blend(integer_weights([1 - 1e-6, 1e-6]))
    assert [blend.counts(n)[1] for n in (499_999, 500_001, 1_500_001, 10**12)] == [0, 1, 2, 10**6]


def test_errors_of_stages_do_not_add_up() -> None:
    random = np.random.default_rng(5)
    for _ in range(10):
        lengths = random.integers(1, 40, 60)
        stages = [Stage(int(length), random_weights(random, 3)) for length in lengths]
        found = np.abs(deviations([*stages, Stage(None, random_weights(random, 3))], 2500))
        assert found.max() < 1.5 and (found < 1).mean() > 0.99


def test_errors_of_stages_of_many_sources_do_not_add_up() -> None:
    random = np.random.default_rng(6)
    for _ in range(4):
        lengths = random.integers(1, 40, 60)
        stages = [Stage(int(length), random_weights(random, int(random.integers(2, 9)), 9)) for length in lengths]
        found = np.abs(deviations([*stages, Stage(None, random_weights(random, 9, 9))], 2500))
        assert found.max() < 2 and (found < 1).mean() > 0.95


def test_any_cut_and_any_start_give_the_same_slots() -> None:
    random = np.random.default_rng(2)
    stages = [Stage(777, random_weights(random, 5)), Stage(50, (0, 0, 1, 0, 0)), Stage(None, random_weights(random, 5))]
    mixture = Mixture(stages)
    sources, numbers = mixture.slots(0, 2000)
    for start, count in [(0, 1), (776, 3), (800, 1), (826, 2), (1000, 1000), (1999, 1), (5, 0)]:
        part = mixture.slots(start, count)
        np.testing.assert_array_equal(part[0], sources[start : start + count])
        np.testing.assert_array_equal(part[1], numbers[start : start + count])
    for n in (0, 1, 776, 777, 827, 1500, 2000):
        assert mixture.counts(n) == [int((sources[:n] == d).sum()) for d in range(5)]


def test_a_source_goes_on_from_stage_to_stage_without_a_gap() -> None:
    mixture = Mixture([Stage(100, (1, 1)), Stage(50, (1, 0)), Stage(None, (1, 3))])
    sources, numbers = mixture.slots(0, 1000)
    for source in (0, 1):
        assert numbers[sources == source].tolist() == list(range(int((sources == source).sum())))
    assert set(sources[100:150].tolist()) == {0}


def test_positions_far_beyond_64_bit_products_are_exact() -> None:
    weights = integer_weights([0.7, 0.2, 0.1])
    mixture = Mixture([Stage(None, weights)])
    n = 10**13 + 12_345
    sources, numbers = mixture.slots(n, CHUNK + 10)
    before, after = mixture.counts(n), mixture.counts(n + CHUNK + 10)
    for source, weight in enumerate(weights):
        mine = numbers[sources == source]
        assert mine.tolist() == list(range(before[source], after[source]))
        assert abs(before[source] * RESOLUTION - weight * n) < RESOLUTION


def test_weights_by_size_end_every_epoch_together() -> None:
    sizes = (1000, 333, 7)
    mixture = Mixture([Stage(None, sizes)])
    for epoch in range(4):
        assert mixture.counts(epoch * sum(sizes)) == [epoch * size for size in sizes]


def test_integer_weights_sum_to_the_resolution_and_keep_what_is_above_zero() -> None:
    random = np.random.default_rng(1)
    for sources in range(1, 12):
        weights = random.random(sources)
        found = integer_weights([float(weight) for weight in weights])
        assert sum(found) == RESOLUTION
        np.testing.assert_allclose(np.array(found) / RESOLUTION, weights / weights.sum(), rtol=1e-9)
    assert integer_weights([1.0, 1e-30, 0.0]) == (RESOLUTION - 1, 1, 0)


def test_two_even_sources_take_turns() -> None:
    sources, _ = Mixture([Stage(None, (1, 1))]).slots(0, 20)
    assert all(first != second for first, second in itertools.pairwise(sources.tolist()))
