"""Fates: the first of equal documents stays, and no text stands on both sides of the split."""

import numpy as np

from data_prep.dedup import DROPPED, TRAIN, VALIDATION, as_keys, decide_fates, document_keys, pair_keys


def fates_of(texts: list[str], fraction: float) -> np.ndarray:
    return decide_fates(as_keys([key for text in texts for key in document_keys(text)], 1), fraction)


def test_the_first_of_equal_documents_stays() -> None:
    fates = fates_of(["a", "b", "a", "c", "b", "a"], 0.0)
    assert (fates == DROPPED).tolist() == [False, False, True, False, True, True]


def test_the_share_held_out_is_about_the_fraction() -> None:
    fates = fates_of([f"document {number}" for number in range(20_000)], 0.1)
    assert abs((fates == VALIDATION).mean() - 0.1) < 0.01 and (fates != DROPPED).all()


def test_the_split_depends_on_the_content_alone() -> None:
    texts = [f"document {number}" for number in range(500)]
    held_out = {text for text, fate in zip(texts, fates_of(texts, 0.1), strict=True) if fate == VALIDATION}
    turned = [*texts[::-1], "more"]
    again = {text for text, fate in zip(turned, fates_of(turned, 0.1), strict=True) if fate == VALIDATION}
    assert held_out == again - {"more"} and held_out


def test_nothing_is_held_out_where_nothing_is_asked() -> None:
    assert (fates_of(["a", "b"], 0.0) == TRAIN).all() and fates_of(["a"], 0.9).tolist() == [TRAIN]


def test_both_splits_have_a_document_where_there_are_two() -> None:
    for fraction in (1e-12, 0.999999):
        assert sorted(fates_of([f"document {n}" for n in range(5)], fraction).tolist())[0] == TRAIN
        assert VALIDATION in fates_of([f"document {n}" for n in range(5)], fraction)


def test_a_pair_stays_only_where_neither_side_was_seen() -> None:
    pairs = [("Open", "Öffnen"), ("open…", "Aufmachen"), ("Unlock", "ÖFFNEN"), ("Shut", "Zu"), ("Zu", "Geschlossen")]
    fates = decide_fates(as_keys([key for pair in pairs for key in pair_keys(*pair)], 2), 0.0)
    assert (fates == DROPPED).tolist() == [False, True, True, False, True]
