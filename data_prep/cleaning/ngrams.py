"""Repetition of n-grams of words, measured exactly only where it could reach a threshold.

Characters are those of words: white space counts neither above nor below. A *duplicate* n-gram equals an earlier one of its
document; characters in overlapping ones count once. The *top* n-gram is the most frequent one (of several, the one with most
characters) and covers its characters times its count; one that occurs once repeats nothing.

Two facts make this cheap. A run covered by duplicate n-grams is covered by duplicate 5-grams, so whoever passes with 5-grams at
the lowest threshold passes with 6 to 10. And the characters of all 2-grams in one of 256 buckets bound those of the top 2-gram;
twice that bounds a top 3-gram and 4-gram, which are made of two 2-grams.
"""

import numpy as np

from data_prep.cleaning.batch import Batch
from data_prep.cleaning.running_hash import earlier_equal, of_document, span_hashes

SHORTEST_DUPLICATE = 5
_BUCKETS = 256


def duplicate_share(batch: Batch, size: int, above: float) -> np.ndarray:
    """(D,) share of characters in duplicate n-grams; exact where it is greater than `above`, else not greater than `above`.

    Args:
        batch: the documents; those that are not alive get 0.
        size: words of an n-gram, 5 or more.
        above: the threshold.
    """
    base = batch.measured.get("base")
    if base is None:  # kept on the batch, which asks six times
        base = batch.measured["base"] = _duplicate_share(batch, batch.alive, SHORTEST_DUPLICATE)
    if size == SHORTEST_DUPLICATE:
        return base
    return _duplicate_share(batch, (base > above) & batch.alive, size)


def top_share(batch: Batch, size: int, above: float) -> np.ndarray:
    """(D,) share of characters in the top n-gram; exact where it is greater than `above`, else not greater than `above`.

    Args:
        batch: the documents; those that are not alive get 0.
        size: words of an n-gram, 2 to 4.
        above: the threshold.
    """
    bound = batch.measured.get("bound")
    if bound is None:
        bound = batch.measured["bound"] = _top_bound(batch, batch.alive, 2)
    maybe = batch.alive & (bound * (1 if size == 2 else 2) > above)
    if size > 2:
        maybe &= _top_bound(batch, maybe, size) > above
    return _top_share(batch, maybe, size)


def _begins(batch: Batch, documents: np.ndarray, size: int) -> np.ndarray:
    """(N,) the first words of the n-grams that lie within one of some documents (D,), ascending."""
    counts = np.where(documents, np.maximum(batch.words - size + 1, 0), 0)
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(batch.word_offset[:-1] - (ends - counts), counts)


def _characters(batch: Batch, begins: np.ndarray, size: int) -> np.ndarray:
    """(N,) characters of n-grams."""
    return sum((batch.word_characters[begins + more] for more in range(1, size)), batch.word_characters[begins])


def _duplicate_share(batch: Batch, documents: np.ndarray, size: int) -> np.ndarray:
    """(D,) exact for some documents (D,), 0 for others."""
    begins = _begins(batch, documents, size)
    hashes = span_hashes(batch.running, begins, begins + size)
    at = begins[earlier_equal(hashes, batch.document_of_word[begins])]
    covered = np.zeros(len(batch.word_begin), dtype=bool)
    for more in range(size):
        covered[at + more] = True
    words = np.flatnonzero(covered)
    weights = batch.word_characters[words]
    inside = np.bincount(batch.document_of_word[words], weights=weights, minlength=len(batch))
    return inside / np.maximum(batch.characters, 1)


def _top_bound(batch: Batch, documents: np.ndarray, size: int) -> np.ndarray:
    """(D,) for some documents (D,), the greatest share of characters that n-grams of one bucket have: no n-gram has more."""
    begins = _begins(batch, documents, size)
    owner = batch.document_of_word[begins]
    hashes = of_document(span_hashes(batch.running, begins, begins + size), owner)
    bucket = (hashes >> np.uint64(56)).astype(np.int64) + owner * _BUCKETS
    masses = np.bincount(bucket, weights=_characters(batch, begins, size), minlength=len(batch) * _BUCKETS)
    return masses.reshape(len(batch), _BUCKETS).max(axis=1) / np.maximum(batch.characters, 1)


def _top_share(batch: Batch, documents: np.ndarray, size: int) -> np.ndarray:
    """(D,) exact for some documents (D,), 0 for others."""
    begins = _begins(batch, documents, size)
    keys = of_document(span_hashes(batch.running, begins, begins + size), batch.document_of_word[begins])
    _, at, counts = np.unique(keys, return_index=True, return_counts=True)
    begins, owner = begins[at], batch.document_of_word[begins[at]]
    most = np.full(len(batch), 2)  # what occurs once repeats nothing
    np.maximum.at(most, owner, counts)
    longest = np.zeros(len(batch), dtype=np.int64)
    top = counts == most[owner]
    np.maximum.at(longest, owner[top], _characters(batch, begins[top], size))
    return most * longest / np.maximum(batch.characters, 1)
