"""Exact deduplication and the split, from hashes alone.

Tasks hash what they read; the driver sees (N, K) keys of 128 bits, in the order of the plan, and decides the fate of every
document: the first of equal ones stays. Documents have one key (their content); pairs have two (source and target, normalised),
and a pair stays only where *neither* was seen before, on whatever side. So every text occurs once in the whole corpus, and no
held-out one can stand on either side of a training pair.

Memory: 16 bytes a key in the driver for documents; sets of Python for pairs, about 200 bytes each.
"""

from collections.abc import Sequence

import numpy as np
import xxhash

from data_prep.clean import normalized

DROPPED, TRAIN, VALIDATION = 0, 1, 2
KEY = np.dtype([("high", "<u8"), ("low", "<u8")])


def document_keys(text: str) -> list[bytes]:
    """The one key of a document."""
    return [xxhash.xxh3_128_digest(text.encode())]


def pair_keys(source: str, target: str) -> list[bytes]:
    """The two keys of a pair."""
    return [xxhash.xxh3_128_digest(normalized(side).encode()) for side in (source, target)]


def as_keys(digests: Sequence[bytes], columns: int) -> np.ndarray:
    """(N, K) keys of N * K digests."""
    return np.frombuffer(b"".join(digests), dtype=KEY).reshape(-1, columns)


def decide_fates(keys: np.ndarray, validation_fraction: float) -> np.ndarray:
    """(N,) uint8: DROPPED, TRAIN or VALIDATION for each document, by exact deduplication.

    Args:
        keys: (N, K), in the order of the plan.
        validation_fraction: share of documents that are held out.
    """
    kept = first_of_equal(keys)
    return fates_of(kept, held_out_of(keys[:, 0], kept, validation_fraction))


def first_of_equal(keys: np.ndarray) -> np.ndarray:
    """(N,) bool: the first of equal documents, or the pairs of which neither side was seen before.

    Args:
        keys: (N, K), in the order of the plan.
    """
    return _first_of_documents(keys[:, 0]) if keys.shape[1] == 1 else _first_of_pairs(keys)


def held_out_of(keys: np.ndarray, kept: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: the documents that are held out for validation.

    They are those whose key is below the fraction: the same document is held out in whatever corpus it stands. Of a small
    corpus at least one document is held out, and at least one is not; a lone document trains.

    Args:
        keys: (N,), the first key of each document.
        kept: (N,) bool: those that were not dropped, by whatever step.
        fraction: share of documents that are held out.
    """
    high = keys["high"]
    held_out = kept & (high < np.uint64(int(fraction * 2**64)))
    candidates = np.flatnonzero(kept)
    if fraction > 0 and len(candidates) > 0:
        held_out[candidates[np.argmin(high[candidates])]] = True
        held_out[candidates[np.argmax(high[candidates])]] = False
    return held_out


def fates_of(kept: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """(N,) uint8 of what is kept and held out, (N,) bool each."""
    fates = np.where(kept, np.uint8(TRAIN), np.uint8(DROPPED))
    fates[held_out] = VALIDATION
    return fates


def _first_of_documents(keys: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(keys), dtype=bool)
    kept[np.unique(keys, return_index=True)[1]] = True
    return kept


def _first_of_pairs(keys: np.ndarray) -> np.ndarray:
    kept = np.zeros(len(keys), dtype=bool)
    seen: set[tuple[int, int]] = set()
    for row, sides in enumerate(keys.tolist()):
        if seen.isdisjoint(sides):
            kept[row] = True
            seen.update(sides)
    return kept
