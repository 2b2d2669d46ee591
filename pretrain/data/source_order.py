"""SourceOrder: which window of a source stands at its k-th sample.

`ShuffledSource`: a keyed permutation of all windows, another one each epoch (`sample_order`).

`ErasOfSource`: the stream is cut into eras of a fixed number of windows. Eras are read in the order of the stream, the windows
of each under a permutation of their own. What is read soon then lies close together: a cache of shards on local disk can be
filled ahead, and a run may start while later eras are still being prepared, for the order of an era depends on nothing behind it.
The price is that windows mix within an era only; preparation that takes its inputs in a mixed order makes up for that.

Alternative not taken: eras in a shuffled order from the second epoch on; a cache would gain nothing from it, and lose its
sequence.
"""

from functools import lru_cache
from typing import Protocol

import numpy as np

from pretrain.data.sample_order import Permutation, SampleOrder


class SourceOrder(Protocol):
    """Epoch after epoch over the windows of one source."""

    size: int
    """Windows of an epoch."""

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """(N,) int64 windows at (N,) int64 positions, which ascend."""
        ...


class ErasOfSource:
    """Eras in the order of the stream, shuffled within."""

    def __init__(self, size: int, era: int, seed: int, purpose: str) -> None:
        """An order.

        Args:
            size: windows of an epoch, at least 1.
            era: windows of an era; the last one may be shorter.
            seed: of the run.
            purpose: keeps the orders of several streams apart.
        """
        self.size, self._era = size, era
        key = f"{purpose}/eras/seed={seed}"

        @lru_cache(maxsize=4)
        def permutation(epoch: int, number: int) -> Permutation:
            width = min(era, size - number * era)
            return Permutation(width, f"{key}/epoch={epoch}/era={number}")

        self._permutation = permutation

    def samples_at(self, positions: np.ndarray) -> np.ndarray:
        """(N,) int64 windows at (N,) int64 positions, which ascend."""
        found, done = np.empty(len(positions), np.int64), 0
        while done < len(positions):
            epoch, within = divmod(int(positions[done]), self.size)
            number = within // self._era
            permutation = self._permutation(epoch, number)
            first = epoch * self.size + number * self._era
            stop = int(np.searchsorted(positions, first + permutation.size))
            assert stop > done, "an era must hold the position that it was chosen for"  # or nothing is done, for ever
            found[done:stop] = permutation(positions[done:stop] - first) + number * self._era
            done = stop
        return found


def shuffled_source(size: int, seed: int, purpose: str) -> SampleOrder:
    """All windows under one permutation an epoch."""
    return SampleOrder(size, seed, purpose)
