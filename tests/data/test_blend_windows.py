"""Any number of sources: counts within 1 of exact at every prefix, near the start and after ten trillion samples."""

from collections.abc import Sequence

import numpy as np
import pytest

from pretrain.data.blend_windows import RARE_REACH, REACH, WindowBlend
from pretrain.data.mixture import RESOLUTION, Mixture, Stage, integer_weights

SLOTS = 12_000
FAR = 10**13 + 12_345


def worst(blend: WindowBlend, weights: Sequence[int], start: int, count: int) -> float:
    """How far counts are from exact at the most, at every prefix of these slots; in Python integers where they are large."""
    sources, _ = blend.slots(start, count, [0] * len(weights))
    total, found, before = sum(weights), 0.0, blend.counts(start)
    slots = np.arange(count + 1)
    for source, weight in enumerate(weights):
        given = np.concatenate([[0], np.cumsum(sources == source)])
        error = before[source] * total - start * weight  # of the first prefix, in 1 / total
        found = max(found, float(np.abs(error / total + given - slots * (weight / total)).max()))
    return found


def blends(random: np.random.Generator, sources: int) -> list[tuple[int, ...]]:
    """Weights of every kind, with at most one group of rare sources."""
    numbers = np.arange(1, sources + 1)
    dominant = np.ones(sources)
    dominant[0] = 300 * sources
    shares = [
        random.dirichlet(np.ones(sources)),
        random.dirichlet(np.full(sources, 0.3)) + 1e-5,
        dominant,
        1 / numbers,
        1 / numbers**2.0,
        2.0 ** -np.minimum(numbers, 20),
    ]
    whole = [(1,) * sources, tuple(random.integers(1, 40, sources).tolist())]
    return [*whole, *(integer_weights([float(s) for s in share]) for share in shares)]


@pytest.mark.parametrize("sources", [5, 6, 7, 9, 12, 20, 50, 200])
def test_every_count_is_within_one_of_exact_at_every_prefix(sources: int) -> None:
    random = np.random.default_rng(sources)
    for weights in blends(random, sources):
        blend = WindowBlend(weights)
        assert blend.is_proven
        assert worst(blend, weights, 0, SLOTS) < 1 + 1e-9  # of float64: 1 - 1 / total is met
        assert worst(blend, weights, FAR, 5_000) < 1 + 1e-9


def test_weights_on_which_a_tree_of_splits_strays_by_1_28() -> None:
    weights = (14, 38, 38, 1, 26, 27, 11, 17, 14, 38)
    mixture = Mixture([Stage(None, weights)])
    sources, _ = mixture.slots(0, 672)
    counts = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
    exact = np.arange(1, 673)[:, None] * np.array(weights)
    assert (np.abs(counts * sum(weights) - exact) < sum(weights)).all()


@pytest.mark.parametrize("start", [0, 3_000, FAR])
@pytest.mark.parametrize("rare", [0.1, 1e-3, 1e-5])
def test_counts_slots_and_numbers_agree_at_any_start(start: int, rare: float) -> None:
    weights = integer_weights([0.4, 0.3, 0.2, rare, rare / 3, 0.0, rare / 7])
    blend, base = WindowBlend(weights), [10**12 * source for source in range(7)]
    sources, numbers = blend.slots(start, 9_000, base)
    for cut in (0, 1, 4_097, 9_000):
        counts = blend.counts(start + cut)
        assert sum(counts) == start + cut
        for source, (before, now) in enumerate(zip(blend.counts(start), counts, strict=True)):
            mine = numbers[:cut][sources[:cut] == source]
            assert mine.tolist() == list(range(base[source] + before, base[source] + now))
    part = WindowBlend(weights).slots(start + 4_000, 300, base)
    np.testing.assert_array_equal(part[0], sources[4_000:4_300])
    np.testing.assert_array_equal(part[1], numbers[4_000:4_300])


def test_rare_sources_of_one_and_of_two_ranks_of_rarity_get_their_samples() -> None:
    weights = integer_weights([0.5, 0.3, 0.2, 1 / (4 * REACH), 1 / (5 * REACH), 1 / (5 * REACH * RARE_REACH)])
    blend = WindowBlend(weights)
    assert not blend.is_proven
    for n in (10**5, 10**9, FAR):
        assert all(abs(c * RESOLUTION - n * w) < RESOLUTION for c, w in zip(blend.counts(n), weights, strict=True))


def test_a_source_that_is_owed_is_served_first() -> None:
    weights = (1,) * 8
    owed = [0, 0, 0, 7, -7, 0, 0, 0]
    assert 3 in WindowBlend(weights, owed).slots(0, 2, [0] * 8)[0].tolist()
    assert 4 not in WindowBlend(weights, owed).slots(0, 8, [0] * 8)[0].tolist()


def test_the_largest_weights_stay_within_64_bits() -> None:
    weights = integer_weights([1.0, 0.5, 0.25, 0.01, 1e-4, 2e-7, 1e-7])
    blend = WindowBlend(weights)
    assert sum(weights) == RESOLUTION and worst(blend, weights, FAR, 30_000) < 1 + 1e-9
    with pytest.raises(AssertionError, match="too large for int64"):
        WindowBlend([weight << 8 for weight in weights])
