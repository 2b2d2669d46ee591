"""The benchmark of near-duplicates judges by its own exact similarity, and would see a dedup that misses or lies."""

import random
from dataclasses import replace

import numpy as np

from benchmarks import dedup
from data_prep.near_duplicates import Twins
from pretrain.data.dedup_settings import DedupSettings
from tests.data_prep.corpora import text


def corpus() -> dedup.Corpus:
    return dedup._planted([text(seed, 60) for seed in range(60)], 36, random.Random(0))


def test_planted_copies_are_found_and_none_falsely() -> None:
    found = dedup._measure_dedup(corpus(), DedupSettings(method="minhash"), trace=False)
    assert found["recall"] > 0.95 and found["false_removals"] == 0 and found["planted_at_or_above_limit"] >= 20


def test_a_dedup_that_drops_nothing_or_the_wrong_ones_is_seen() -> None:
    planted = corpus()
    kept = np.ones(len(planted.texts), dtype=bool)
    nothing = Twins(~kept, np.empty(0, np.int64), np.empty(0), 0, 0)
    later = np.unique([pair[1] for pair in planted.pairs])
    everything = replace(nothing, drop=np.isin(np.arange(len(kept)), later), kept_of=(later + 1) % len(kept))
    assert dedup._quality(planted, kept, replace(nothing), 0.8)["recall"] == 0.0
    assert dedup._quality(planted, kept, everything, 0.8)["false_removals_share_of_dropped"] > 0.9


def test_a_larger_share_of_edited_words_is_less_similar() -> None:
    original = text(1, 200)
    shares = [0.0, 0.005, 0.02, 0.05]
    similar = [dedup._similarity(original, dedup._edited(original, s, [original], random.Random(2))) for s in shares]
    assert similar[0] == 1.0 and similar == sorted(similar, reverse=True) and similar[-1] < 0.8
