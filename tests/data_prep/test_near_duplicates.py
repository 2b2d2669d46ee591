"""Near-duplicates: planted ones are found, others stay, whatever the batches, and groups do not cost their square."""

import os
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest

from data_prep import minhash, near_duplicates, shingles
from data_prep.minhash import EMPTY, signatures
from data_prep.near_duplicates import Twins, find_twins
from data_prep.shingles import jaccard, shingle_sets
from pretrain.data.dedup_settings import DedupSettings
from pretrain.errors import ConfigError

SETTINGS = DedupSettings(method="minhash")
VOCABULARY = [f"word{number}" for number in range(5000)]


def document(source: random.Random, words: int = 400) -> list[str]:
    return source.choices(VOCABULARY, k=words)


def edited(source: random.Random, words: list[str], changes: int) -> list[str]:
    """The words with some of them replaced, far apart: each costs five shingles on either side."""
    changed = list(words)
    for at in source.sample(range(5, len(words), 10), changes):
        changed[at] = "new" + source.choice(VOCABULARY)
    return changed


def joined(documents: Sequence[Sequence[str]]) -> list[str]:
    return [" ".join(words) for words in documents]


def twins_of(texts: list[str], settings: DedupSettings = SETTINGS, kept: np.ndarray | None = None) -> Twins:
    def reread(rows: np.ndarray) -> list[np.ndarray]:
        assert (np.diff(rows) > 0).all()
        return shingle_sets([texts[row] for row in rows.tolist()], settings.shingle_words)

    taking_part = np.ones(len(texts), dtype=bool) if kept is None else kept
    return find_twins(signatures(texts, settings), taking_part, settings, reread)


def planted(changes: int, pairs: int = 150) -> tuple[list[str], float]:
    """Pairs (2n, 2n + 1) of about the same similarity, and its mean."""
    source = random.Random(changes)
    texts = []
    for _ in range(pairs):
        original = document(source)
        texts += joined([original, edited(source, original, changes)])
    sets = shingle_sets(texts, 5)
    return texts, float(np.mean([jaccard(sets[at], sets[at + 1]) for at in range(0, len(sets), 2)]))


@pytest.mark.parametrize("changes", [0, 1, 4, 8])
def test_planted_near_duplicates_are_found(changes: int) -> None:
    texts, similarity = planted(changes)
    found = twins_of(texts)
    assert similarity > 0.8 and not found.drop[0::2].any() and found.drop[1::2].mean() > 0.98


@pytest.mark.parametrize("changes", [10, 20, 40])
def test_documents_below_the_limit_stay(changes: int) -> None:
    texts, similarity = planted(changes)
    assert similarity < 0.8 and not twins_of(texts).drop.any()


def test_a_verified_pair_is_as_similar_as_said() -> None:
    texts, _ = planted(8)
    found = twins_of(texts)
    sets = shingle_sets(texts, 5)
    examples = found.examples(1000)
    assert len(examples) == found.summary()["dropped"] == found.drop.sum()
    assert all(twin.similarity == jaccard(sets[twin.dropped], sets[twin.kept]) >= 0.8 for twin in examples)
    assert examples[0].similarity == min(twin.similarity for twin in examples)


def test_signatures_alone_find_twins_without_reading_again() -> None:
    texts, _ = planted(2)
    settings = DedupSettings(method="minhash", verify="signature")
    assert twins_of(texts, settings).drop[1::2].mean() > 0.98

    def never(rows: np.ndarray) -> list[np.ndarray]:
        raise AssertionError(rows)

    find_twins(signatures(texts, settings), np.ones(len(texts), dtype=bool), settings, never)


def test_signatures_and_twins_are_the_same_for_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, _ = planted(4, pairs=40)
    texts += ["", "one word", "Ä — 中文 “quoted”", "?"]
    whole = signatures(texts, SETTINGS)
    alone = np.concatenate([signatures([text], SETTINGS) for text in texts])
    turned = signatures(texts[::-1], SETTINGS)[::-1]
    monkeypatch.setattr(shingles, "BATCH_CHARACTERS", 5000)
    for other in (alone, turned, signatures(texts, SETTINGS)):
        assert (whole == other).all()


def test_signatures_are_pinned() -> None:
    """A change of these values needs a new `SIGNATURE_VERSION`."""
    text = " ".join(f"word{number}" for number in range(300))
    assert signatures([text], SETTINGS)[0, [0, 1, 64, 127]].tolist() == [52524877, 1036262729, 152762909, 482123194]


def test_texts_without_words_are_no_twins() -> None:
    texts = ["", "?!", "", "..."]
    assert (signatures(texts, SETTINGS) == EMPTY).all() and not twins_of(texts).drop.any()


def test_the_first_of_equal_shingles_stays() -> None:
    found = twins_of(["One two three!", "other words", "one, TWO three", "one two three"])
    assert found.drop.tolist() == [False, False, True, True] and found.kept_of.tolist() == [0, 0]


def test_a_document_goes_only_where_what_it_resembles_stays() -> None:
    source = random.Random(5)
    first = document(source)
    second = edited(source, first, 6)
    third = list(second)
    for at in range(0, 60, 10):
        third[at] = "third" + third[at]
    sets = shingle_sets(joined([first, second, third]), 5)
    assert jaccard(sets[0], sets[1]) > 0.8 and jaccard(sets[1], sets[2]) > 0.8 and jaccard(sets[0], sets[2]) < 0.8
    assert twins_of(joined([first, second, third])).drop.tolist() == [False, True, False]


def test_only_kept_documents_take_part() -> None:
    texts = ["a b c d e f"] * 4
    assert twins_of(texts, kept=np.array([False, True, False, True])).drop.tolist() == [False, False, False, True]
    assert not twins_of(texts, kept=np.zeros(4, dtype=bool)).drop.any()
    assert len(twins_of([]).drop) == 0


@pytest.mark.parametrize("verify", ["exact", "signature"])
def test_a_group_of_20_000_equal_signatures_costs_no_square(verify: str) -> None:
    settings = DedupSettings.model_validate({"method": "minhash", "verify": verify})
    alike = np.repeat(signatures(joined([document(random.Random(0))]), settings), 20_000, axis=0)
    same = np.arange(400, dtype=np.uint64)
    start = time.process_time()
    found = find_twins(alike, np.ones(len(alike), dtype=bool), settings, lambda rows: [same] * len(rows))
    assert found.drop.sum() == found.comparisons == 19_999 and not found.drop[0]
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize(("representatives", "found"), [(2, False), (3, True)])
def test_of_a_crowded_band_the_first_kept_ones_are_compared(
    monkeypatch: pytest.MonkeyPatch, representatives: int, found: bool
) -> None:
    monkeypatch.setattr(near_duplicates, "REPRESENTATIVES", representatives)
    rows = np.random.default_rng(0).integers(0, 2**31, (4, 128), dtype=np.uint32)
    rows[:, :6] = 7
    rows[3] = np.where(np.arange(128) % 6 == 0, rows[3], rows[2])  # alike in five slots of six, in one whole band
    settings = DedupSettings(method="minhash", verify="signature")
    twins = find_twins(rows, np.ones(4, dtype=bool), settings, lambda rows: [])
    assert twins.drop.tolist() == [False, False, False, found]


def test_sets_are_forgotten_once_no_later_document_needs_them() -> None:
    texts, _ = planted(8, pairs=60)
    search_sets = []
    forget = near_duplicates._Search.judge

    def watched(self: near_duplicates._Search, *arguments: object) -> None:
        forget(self, *arguments)  # type: ignore[arg-type]
        search_sets.append(len(self._sets))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(near_duplicates._Search, "judge", watched)
        twins_of(texts)
    assert max(search_sets) <= 10 and search_sets[-1] == 0


def test_bands_that_need_more_slots_than_there_are_are_refused() -> None:
    settings = DedupSettings(method="minhash", bands=26, rows_per_band=5)
    with pytest.raises(ConfigError, match=r"dedup.bands=26 x dedup.rows_per_band=5 need 130 .* at most 25 bands"):
        signatures(["a"], settings)
    with pytest.raises(ConfigError, match="at most 25 bands"):
        find_twins(np.zeros((1, 128), dtype=np.uint32), np.ones(1, dtype=bool), settings, lambda rows: [])


@pytest.mark.parametrize("change", [{"similarity": 0.0}, {"similarity": 1.1}, {"bands": 0}, {"method": "fuzzy"}])
def test_settings_outside_their_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        DedupSettings.model_validate(change)


def test_the_bands_compare_99_percent_of_the_pairs_at_the_limit() -> None:
    chance = 1 - (1 - SETTINGS.similarity**SETTINGS.rows_per_band) ** SETTINGS.bands
    assert chance >= 0.99 and SETTINGS.slots_in_bands <= SETTINGS.permutations


def test_the_environment_is_left_as_it_was() -> None:
    before = dict(os.environ)
    minhash._use_one_thread.cache_clear()
    signatures(["a b c"], SETTINGS)
    assert dict(os.environ) == before


@pytest.mark.parametrize("band", [0, 10, 20])
def test_documents_that_share_any_one_band_are_compared(band: int) -> None:
    source = np.random.default_rng(band)
    made = source.integers(0, 2**32, (6, SETTINGS.permutations), dtype=np.uint32)
    made[4] = made[1]
    for other in set(range(SETTINGS.bands)) - {band}:
        made[4, other * SETTINGS.rows_per_band] ^= 1
    same = np.arange(50, dtype=np.uint64)
    twins = find_twins(made, np.ones(6, bool), SETTINGS, lambda rows: [same for _ in rows])
    assert np.flatnonzero(twins.drop).tolist() == [4]
