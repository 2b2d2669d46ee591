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
from data_prep.cleaning.running_hash import earlier_equal, ngram_hashes, of_document

SHORTEST_DUPLICATE = 5
_BUCKETS = 256


def duplicate_share(batch: Batch, size: int, above: float) -> np.ndarray:
    """(D,) share of characters in duplicate n-grams; exact where it is greater than `above`, else not greater than `above`.

    Args:
        batch: the documents; those that are not alive get 0.
        size: words of an n-gram, 5 or more.
        above: the threshold.
    """
    base = _base_share(batch)
    if size == SHORTEST_DUPLICATE:
        return base
    found = np.zeros(len(batch))
    for document in np.flatnonzero((base > above) & batch.alive):
        found[document] = _share_of_one(batch, int(document), size)
    return found


def top_share(batch: Batch, size: int, above: float) -> np.ndarray:
    """(D,) share of characters in the top n-gram; exact where it is greater than `above`, else not greater than `above`.

    Args:
        batch: the documents; those that are not alive get 0.
        size: words of an n-gram, 2 to 4.
        above: the threshold.
    """
    found = np.zeros(len(batch))
    maybe = batch.alive & (_top_bound(batch, 2) * (1 if size == 2 else 2) > above)
    if size > 2 and maybe.any():
        maybe &= _top_bound(batch, size) > above
    for document in np.flatnonzero(maybe):
        found[document] = _top_of_one(batch, int(document), size)
    return found


def _base_share(batch: Batch) -> np.ndarray:
    """Of 5-grams, for all documents at once; kept on the batch, which asks six times."""
    known = batch.measured.get("base")
    if known is None:
        size = SHORTEST_DUPLICATE
        inside = _inside(batch, size)
        hashes = ngram_hashes(batch.running, size)[inside]
        at = inside[_repeated(of_document(hashes, batch.document_of_word[inside]))]
        known = _covered_share(batch, at, size)
        batch.measured["base"] = known
    return known


def _inside(batch: Batch, size: int) -> np.ndarray:
    """Where n-grams begin that lie within one document that is alive."""
    count = max(0, len(batch.word_begin) - size + 1)
    whole = np.ones(count, dtype=bool)
    for back in range(1, size):
        crossing = batch.word_offset[1:] - back
        whole[crossing[(crossing >= 0) & (crossing < count)]] = False
    if not batch.alive.all():
        whole &= batch.alive[batch.document_of_word[:count]]
    return np.flatnonzero(whole)


def _repeated(keys: np.ndarray) -> np.ndarray:
    """Places of keys that equal an earlier one.

    Every key writes its place into a table at its high bits; where a later one wrote over it, both may be equal. These few (a
    seventh, at a table of four times the keys) are then compared by sorting: four times faster than sorting all.
    """
    bits = max(4, (4 * len(keys)).bit_length())
    slot = (keys >> np.uint64(64 - bits)).astype(np.int64)
    place = np.arange(len(keys), dtype=np.int32)
    table = np.empty(1 << bits, dtype=np.int32)  # read only where it was written
    table[slot] = place
    shared = np.zeros(1 << bits, dtype=bool)
    shared[slot[table[slot] != place]] = True
    maybe = np.flatnonzero(shared[slot])
    return maybe[earlier_equal(keys[maybe], np.zeros(len(maybe), dtype=np.int64))]


def _covered_share(batch: Batch, at: np.ndarray, size: int) -> np.ndarray:
    covered = np.zeros(len(batch.word_begin), dtype=bool)
    for more in range(size):
        covered[at + more] = True
    words = np.flatnonzero(covered)
    weights = batch.word_characters[words]
    inside = np.bincount(batch.document_of_word[words], weights=weights, minlength=len(batch))
    return inside / np.maximum(batch.characters, 1)


def _share_of_one(batch: Batch, document: int, size: int) -> float:
    first, end = batch.word_offset[document : document + 2]
    hashes = ngram_hashes(batch.running[first : end + 1], size)
    at = np.flatnonzero(earlier_equal(hashes, np.zeros(len(hashes), dtype=np.int64)))
    covered = np.zeros(end - first, dtype=bool)
    for more in range(size):
        covered[at + more] = True
    return float(batch.word_characters[first:end][covered].sum() / max(int(batch.characters[document]), 1))


def _top_bound(batch: Batch, size: int) -> np.ndarray:
    """(D,) the greatest share of characters that n-grams of one bucket have: no n-gram has more."""
    known = batch.measured.get(f"bound{size}")
    if known is None:
        known = np.zeros(len(batch))
        count = len(batch.word_begin) - size + 1
        if count > 0:
            hashes, document = ngram_hashes(batch.running, size), batch.document_of_word[:count]
            bucket = (of_document(hashes, document) >> np.uint64(56)).astype(np.int64) + document * _BUCKETS
            weights = sum(batch.word_characters[more : more + count] for more in range(size))
            masses = np.bincount(bucket, weights=weights, minlength=len(batch) * _BUCKETS)
            known = masses.reshape(len(batch), _BUCKETS).max(axis=1) / np.maximum(batch.characters, 1)
        batch.measured[f"bound{size}"] = known
    return known


def _top_of_one(batch: Batch, document: int, size: int) -> float:
    first, end = batch.word_offset[document : document + 2]
    if end - first < size:
        return 0.0
    hashes = ngram_hashes(batch.running[first : end + 1], size)
    _, at, counts = np.unique(hashes, return_index=True, return_counts=True)
    most = counts.max()
    if most < 2:
        return 0.0
    before = np.concatenate([[0], np.cumsum(batch.word_characters[first:end])])
    longest = (before[at + size] - before[at])[counts == most].max()
    return float(most * longest / max(int(batch.characters[document]), 1))
