"""SampleOrder: which sample is the n-th, as a pure function.

    order = SampleOrder(size=num_samples, seed=1234, purpose="train")
    order.samples(n, count)      # sample numbers at positions n .. n + count - 1

Every epoch is a keyed permutation of its own: a Feistel network (Luby and Rackoff 1988) over the smallest power of two that
holds all samples, with cycle-walking back into the range (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
Nothing is stored and nothing is drawn in sequence, so the state of a run is the position n alone: a rank's slice of a global
batch is arithmetic, resuming at another data-parallel size is exact, and "what was in step k" is answered at once.

Alternatives not taken: a shuffled index on disk (Megatron: minutes and tens of gigabytes at a trillion tokens), a shuffle
buffer (its state must be saved, and it depends on the number of ranks). Cost: about a microsecond a sample, in numpy.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import xxhash

from pretrain.files import hash_bytes

ROUNDS = 6
"""Four suffice against any observer (Luby and Rackoff); small ranges mix visibly better with six."""


class Permutation:
    """A keyed bijection of 0 .. size - 1 that is computed, not stored."""

    def __init__(self, size: int, key: str) -> None:
        """A permutation; the same size and key give the same one on every machine.

        Args:
            size: number of items, from 1 to 2^62.
            key: any text.
        """
        assert 0 < size <= 1 << 62, f"size {size}"
        self.size = size
        bits = max((size - 1).bit_length(), 2)
        # An uneven split keeps the domain under twice the size, so a walk takes less than two steps on average.
        self._left_bits, self._right_bits = np.uint64(bits // 2), np.uint64(bits - bits // 2)
        self._left_mask, self._right_mask = _mask(bits // 2), _mask(bits - bits // 2)
        self._keys = [np.uint64(xxhash.xxh3_64_intdigest(f"{key}/round={round_}".encode())) for round_ in range(ROUNDS)]

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """(n,) int64 images of (n,) indices in 0 .. size - 1."""
        values = indices.astype(np.uint64)  # one below 0 becomes a large one
        # A walk from outside of the domain never comes back into it.
        assert int(values.max(initial=0)) < self.size, f"an index is not within 0 .. {self.size - 1}"
        values = self._encrypt(values)
        outside = np.flatnonzero(values >= self.size)
        while len(outside):
            values[outside] = self._encrypt(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64)

    def _encrypt(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._right_bits, values & self._right_mask
        for round_, key in enumerate(self._keys):
            # Either half is replaced in turn, by a function of the other alone: invertible whatever the function is.
            if round_ % 2 == 0:
                left = left ^ (_mix(right ^ key) & self._left_mask)
            else:
                right = right ^ (_mix(left ^ key) & self._right_mask)
        return (left << self._right_bits) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014); uint64 arithmetic wraps."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class SampleOrder:
    """Epoch after epoch over a fixed number of samples, each epoch in its own order."""

    def __init__(self, size: int, seed: int, purpose: str) -> None:
        """An order.

        Args:
            size: samples of an epoch, at least 1.
            seed: of the run.
            purpose: keeps the orders of several streams apart.
        """
        self.size = size
        self._key = f"{purpose}/seed={seed}"
        self._permutation = lru_cache(maxsize=4)(lambda epoch: Permutation(size, f"{self._key}/epoch={epoch}"))

    def samples(self, start: int, count: int) -> np.ndarray:
        """(count,) int64 sample numbers at positions start .. start + count - 1."""
        return self.samples_at(np.arange(start, start + count))

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """(N,) int64 sample numbers at (N,) int64 positions, which ascend."""
        found, done = np.empty(len(positions), np.int64), 0
        while done < len(positions):
            epoch = int(positions[done]) // self.size
            stop = int(np.searchsorted(positions, (epoch + 1) * self.size))
            assert stop > done, "positions do not ascend"
            found[done:stop] = self._permutation(epoch)(positions[done:stop] - epoch * self.size)
            done = stop
        return found

    def epoch(self, position: int) -> int:
        """Number of the epoch that a position lies in."""
        return position // self.size


def plan_hash(facts: Mapping[str, Any]) -> str:
    """The fingerprint of an order of samples: 32 hexadecimal digits over everything that it depends on."""
    return hash_bytes(json.dumps(facts, sort_keys=True, allow_nan=False).encode())
