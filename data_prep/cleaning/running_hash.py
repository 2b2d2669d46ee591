"""Hashes of runs of words: a polynomial in an odd base modulo 2^64, so that any run costs one difference and one product.

With word hashes h and base R, the running sum is S[i] = h[0] + h[1] R + ... + h[i-1] R^(i-1); the run from a to b hashes to
(S[b] - S[a]) R^-a. All is unsigned 64-bit arithmetic that wraps.
"""

import numpy as np

_BASE = 0x9E3779B97F4A7C13
_INVERSE = pow(_BASE, -1, 1 << 64)
_SPREAD = np.uint64(0xD6E8FEB86659FD93)
_DOCUMENT = np.uint64(0xA0761D6478BD642F)


class _Powers:
    """Powers of the base and of its inverse, made longer when a batch needs it."""

    def __init__(self) -> None:
        self.up = self.down = np.ones(1, dtype=np.uint64)

    def reach(self, count: int) -> None:
        if count > len(self.up):
            size = 1 << (count - 1).bit_length()
            self.up, self.down = _powers(_BASE, size), _powers(_INVERSE, size)


def _powers(base: int, size: int) -> np.ndarray:
    factors = np.full(size, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


_POWERS = _Powers()


def mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit values in which every bit reaches every other."""
    values = values * _SPREAD
    values ^= values >> np.uint64(32)
    values *= _SPREAD
    values ^= values >> np.uint64(32)
    values *= _SPREAD
    return values


def running_sum(hashes: np.ndarray) -> np.ndarray:
    """(W,) hashes of words -> (W + 1,) S."""
    _POWERS.reach(len(hashes) + 1)
    total = np.zeros(len(hashes) + 1, dtype=np.uint64)
    np.cumsum(hashes * _POWERS.up[: len(hashes)], out=total[1:])
    return total


def span_hashes(running: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(N,) hashes of the runs from `begin` to `end`."""
    return (running[end] - running[begin]) * _POWERS.down[begin]


def of_document(hashes: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Hashes that differ between documents, spread over all bits."""
    return mixed(hashes + document.astype(np.uint64) * _DOCUMENT)


def earlier_equal(hashes: np.ndarray, document: np.ndarray) -> np.ndarray:
    """(N,) whether an item equals an earlier one of the same document."""
    keys = of_document(hashes, document)
    maybe = _maybe_repeated(keys)
    maybe = maybe[_maybe_repeated(keys[maybe] << np.uint64(32))]  # by other bits: most that only shared a slot go
    among = keys[maybe]
    order = np.argsort(among, kind="stable")
    found = np.zeros(len(keys), dtype=bool)
    found[maybe[order[1:][among[order[1:]] == among[order[:-1]]]]] = True
    return found


def _maybe_repeated(keys: np.ndarray) -> np.ndarray:
    """Places of keys among which are all that equal another one, ascending.

    Every key writes its place into a table at its high bits; where a later one wrote over it, both may be equal. These few (a
    fifth, at a table of four times the keys) are left to be sorted: several times faster than sorting all.
    """
    bits = max(4, (4 * len(keys)).bit_length())
    slot = (keys >> np.uint64(64 - bits)).astype(np.int64)
    place = np.arange(len(keys), dtype=np.int32)
    table = np.empty(1 << bits, dtype=np.int32)  # read only where it was written
    table[slot] = place
    shared = np.zeros(1 << bits, dtype=bool)
    shared[slot[table[slot] != place]] = True
    return np.flatnonzero(shared[slot])
