"""WindowBlend: slots dealt to any number of sources so that every count is within 1 of exact at every prefix.

A source of share a = w / A gives its j-th sample (from 1) in time if its slot lies in the window (x_{j-1}, x_j + 1) with
x_j = j / a: its count is then less than 1 from a n at every n. By Hall's condition all sources find slots: an interval of L
slots holds at most floor(a L) windows of a source, and these sum to L at most. Earliest deadline first finds the slots (Tijdeman,
"The chairman assignment problem", 1980; Steiner and Yeomans, "Level schedules for mixed-model, just-in-time processes", 1993).

**Any position is reached at once**: blocks of S slots are dealt apart from each other, between counts that stand fixed at their
borders. These come from walking H slots, the longest window, up to a border, from a state known in closed form: all samples
that were due, then open ones by their deadlines. It can go on for ever: the samples of it that are due by q are either all those
due by q, of which Hall's condition leaves room for the rest, or all of it. And a border t is reached from the border s before
it. Intervals that end before t hold no more windows than slots, since one can go on from s for ever. Take one from p to t: what
opens behind p and is given by t was given in the walk, behind p, where p lies in the walk; where p lies before it, all that had
opened by p is due by t and so given, and that is as many as there are slots up to p, at the least.

**Rare sources**, whose windows would make H long, form a group. Its count is pinned to floor(a n + 1/2), which in L slots takes
less than a L + 1: as all are whole numbers, the others still fit into what it leaves, and stay within 1. Slot k of the group
comes when a n passes k - 1/2, so that windows (x_{j-1} + 1/2, x_j + 1/2] in its slots keep its sources within 1: an interval of L
slots holds fewer than L + 1 of them. A group may have a group itself, of sources below 1 / 8,192 of its weight: then its other
sources find one slot too few in some intervals, and a sample may come behind its window. Three of 3,518 such mixtures
were seen to reach 1 or more, 1.35 the worst (`is_proven`).

What earlier stages owe moves a source's windows. What is moved in all stays below 1 sample (1/2 beside a group), or more would be
due at once than there are slots; the rest stays owed.

Alternative not taken: a tree of two-way splits (`mixture`): cheaper, but 1.3 from exact for some weights of ten sources. Cost:
some 0.6 us a slot, the same for each rank whatever part of the slots it reads; the first block some milliseconds.
"""

from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush, heappushpop
from itertools import accumulate, pairwise

import numpy as np

REACH, RARE_REACH = 1024, 8192
"""A share below 1 / REACH is dealt in the group of the rare; below 1 / RARE_REACH of that, in a group of the group's."""
BLOCK = 3072
"""Slots of a block beyond the longest window: walking up to a border costs less than dealing a block."""
KEPT_BLOCKS = 8


class WindowBlend:
    """One stage: counts and slots of a fixed set of weights."""

    def __init__(self, weights: Sequence[int], owed: Sequence[int] | None = None) -> None:
        """A blend.

        Args:
            weights: (D,) of the sources, not negative, one at least above 0.
            owed: (D,) what earlier stages left each source short of its exact count, in multiples of 1 / sum(weights).
        """
        assert sum(weights) > 0 and min(weights) >= 0, f"weights {weights}"
        self.num_sources, self.total = len(weights), sum(weights)
        sources = [source for source, weight in enumerate(weights) if weight]
        self._dealer = _Dealer(sources, weights, owed or [0] * len(weights))
        self._block = lru_cache(maxsize=KEPT_BLOCKS)(self._numbered)

    @property
    def is_proven(self) -> bool:
        """Whether every count is proven to be less than 1 from exact; False where a group has a group."""
        return self._dealer.is_proven

    def counts(self, n: int) -> list[int]:
        """(D,) samples of each source among the first n."""
        block, within = divmod(n, self._dealer.block_slots)
        sources, _, before = self._block(block)
        return [b + c for b, c in zip(before, self._tally(sources[:within]), strict=True)]

    def slots(self, start: int, count: int, base: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(count,) int16 sources and (count,) int64 numbers of the samples within them, counted from `base` on."""
        parts, stop, offsets = [], start + count, np.asarray(base)
        while start < stop:
            block, within = divmod(start, self._dealer.block_slots)
            part = slice(within, within + stop - start)
            sources, numbers, _ = self._block(block)
            parts.append((sources[part], numbers[part] + offsets[sources[part]]))
            start += len(parts[-1][0])
        empty = (np.empty(0, np.int16), np.empty(0, np.int64))
        sources, numbers = zip(empty, *parts, strict=True)
        return np.concatenate(sources), np.concatenate(numbers)

    def _numbered(self, block: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """(S,) sources of a block, (S,) numbers of their samples, (D,) counts before it."""
        before = [0] * self.num_sources
        self._dealer.count(block * self._dealer.block_slots, before)
        sources = self._dealer.block(block)
        tally = self._tally(sources)
        numbers = np.empty(len(sources), np.int64)
        firsts = np.array(before) - np.cumsum([0, *tally[:-1]])
        numbers[np.argsort(sources, kind="stable")] = np.repeat(firsts, tally) + np.arange(len(sources))
        return sources, numbers, before

    def _tally(self, sources: np.ndarray) -> list[int]:
        return np.bincount(sources, minlength=self.num_sources).tolist()


class _Dealer:
    """Deals its slots, from 0 on, to some sources, and those of a group within it to the rare ones."""

    def __init__(
        self, sources: Sequence[int], weights: Sequence[int], owed: Sequence[int], parent: "_Dealer | None" = None
    ) -> None:
        """A dealer to `sources`; one that has a parent is the group within it."""
        self._total = total = sum(weights[source] for source in sources)
        reach = max(REACH if parent is None else RARE_REACH, len(sources))  # so that the heaviest source is not rare
        near = [source for source in sources if weights[source] * reach >= total]
        rare = [source for source in sources if weights[source] * reach < total]
        self._sources, self._weights = np.array(near, np.int16), [weights[source] for source in near]
        self._owed = _made_up([owed[source] for source in near], total // 2 if rare else total - 1)
        self._half = int(parent is not None)
        """1 where windows are moved by half a slot."""
        self._window = -(-total // min(self._weights)) + 1
        self.block_slots = self._window + BLOCK
        assert 2 * total * (self.block_slots + 4) < 1 << 63, f"weights that sum to {total} are too large for int64"
        self._group = _Dealer(rare, weights, [0] * len(weights), self) if rare else None
        self._border = lru_cache(maxsize=KEPT_BLOCKS)(self._walked)
        self.block = lru_cache(maxsize=KEPT_BLOCKS)(self._dealt)
        """(S,) int16 sources of a block, by its number."""

    @property
    def is_proven(self) -> bool:
        """Whether Hall's condition is proven here and in the group."""
        return self._group is None or (not self._half and self._group.is_proven)

    def sources(self, start: int, count: int) -> np.ndarray:
        """(count,) int16 sources of slots start .. start + count - 1."""
        first, stop = start // self.block_slots, -(-(start + count) // self.block_slots)
        joined = np.concatenate([np.empty(0, np.int16), *(self.block(block) for block in range(first, stop))])
        return joined[start - first * self.block_slots :][:count]

    def count(self, slots: int, found: list[int]) -> None:
        """Puts the samples of each source among the first `slots` into `found`."""
        block, within = divmod(slots, self.block_slots)
        for source, count in zip(self._sources.tolist(), self._border(block), strict=True):
            found[source] = count
        if self._group is not None:
            self._group.count(self._group_count(block * self.block_slots), found)
        if within:
            for source, more in enumerate(np.bincount(self.block(block)[:within]).tolist()):
                found[source] += more

    def _group_count(self, slots: int) -> int:
        """The nearest to the group's share of the first `slots`."""
        weight = 0 if self._group is None else self._group._total
        return ((2 * slots - self._half) * weight + self._total) // (2 * self._total)

    def _of_group(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) bool, which slots are the group's."""
        weight = 0 if self._group is None else self._group._total
        rest = ((2 * start - self._half) * weight + self._total) % (2 * self._total)
        return np.diff((rest + 2 * weight * np.arange(stop - start + 1)) // (2 * self._total)) > 0

    def _walked(self, block: int) -> list[int]:
        """(near,) counts at the start of a block."""
        if not block:
            return [0] * len(self._weights)
        stop = block * self.block_slots
        start = stop - self._window
        before = self._feasible(start)
        enough = [self._window * weight // self._total + 3 for weight in self._weights]
        dealt = self._deal(start, stop, before, enough)
        return [b + c for b, c in zip(before, np.bincount(dealt, minlength=len(before)).tolist(), strict=True)]

    def _feasible(self, slots: int) -> list[int]:
        """(near,) counts after so many slots from which one can go on: samples that are due, then open ones by deadline."""
        counts, open_samples = [], []
        for number, (weight, owed) in enumerate(zip(self._weights, self._owed, strict=True)):
            late = weight if self._half else 2 * weight - 1
            due = max((2 * weight * (slots + 1) + 2 * owed - late - 1) // (2 * self._total), 0)
            counts.append(due)
            if (2 * (due * self._total - owed) + self._half * weight) // (2 * weight) < slots:
                open_samples.append(((2 * ((due + 1) * self._total - owed) + late) // (2 * weight), number))
        more = slots - self._group_count(slots) - sum(counts)
        assert 0 <= more <= len(open_samples), f"{more} of {len(open_samples)} open samples after {slots} slots"
        for _, number in sorted(open_samples)[:more]:
            counts[number] += 1
        return counts

    def _dealt(self, block: int) -> np.ndarray:
        start, stop = block * self.block_slots, (block + 1) * self.block_slots
        before, after = self._border(block), self._border(block + 1)
        of_group = self._of_group(start, stop)
        found = np.empty(stop - start, np.int16)
        given = [a - b for b, a in zip(before, after, strict=True)]
        found[~of_group] = self._sources[self._deal(start, stop, before, given)]
        if self._group is not None:
            found[of_group] = self._group.sources(self._group_count(start), int(of_group.sum()))
        found.setflags(write=False)
        return found

    def _deal(self, start: int, stop: int, before: Sequence[int], samples: Sequence[int]) -> np.ndarray:
        """Earliest deadline first.

        Args:
            start: the first slot.
            stop: the slot behind the last one.
            before: (near,) counts at `start`.
            samples: (near,) of each source that are at hand.

        Returns:
            (slots that are not the group's,) indexes into the near sources.
        """
        firsts, keys = self._windows(start, before, samples)
        slots = np.flatnonzero(~self._of_group(start, stop)) + 1
        opened = np.searchsorted(firsts, slots, side="right").tolist()
        at, heap, found = 0, [], []
        for upto in opened:
            if upto <= at and not heap:  # no sample is open: in a group with a group, and not seen there yet
                upto = at + 1
            if upto - at == 1:
                found.append(heappushpop(heap, keys[at]))
            else:
                for key in keys[at:upto]:
                    heappush(heap, key)
                found.append(heappop(heap))
            at = max(at, upto)
        return np.array(found, np.int64) % len(self._weights)

    def _windows(self, start: int, before: Sequence[int], samples: Sequence[int]) -> tuple[np.ndarray, list[int]]:
        """First slots of samples, ascending, counted from 1 at `start`; and keys, the last slot * near + index of the source."""
        near, weights = np.repeat(np.arange(len(samples)), samples), np.array(self._weights)
        # Twice the weight times where a source's next sample is exact; int64, for it is near `start`.
        bases = [
            2 * (count * self._total - owed - start * weight)
            for weight, owed, count in zip(self._weights, self._owed, before, strict=True)
        ]
        numbers = np.arange(len(near)) - np.repeat(np.cumsum(samples) - samples, samples)
        edges, twice = np.array(bases)[near] + 2 * self._total * numbers, 2 * weights[near]
        lates = (weights if self._half else 2 * weights - 1)[near]
        firsts = (edges + self._half * weights[near]) // twice + 1
        lasts = (edges + 2 * self._total + lates) // twice
        order = np.argsort(firsts, kind="stable")
        return firsts[order], (lasts * len(samples) + near)[order].tolist()


def _made_up(owed: Sequence[int], most: int) -> list[int]:
    """Of what sources are owed, so much that it sums to 0, and what is above 0 to `most` at most."""
    short, ahead = [max(o, 0) for o in owed], [max(-o, 0) for o in owed]
    whole = min(sum(short), sum(ahead), most)
    return [s - a for s, a in zip(_scaled(short, whole), _scaled(ahead, whole), strict=True)]


def _scaled(parts: Sequence[int], whole: int) -> list[int]:
    """The parts in proportion, to sum to `whole`."""
    edges = [done * whole // max(sum(parts), 1) for done in accumulate(parts, initial=0)]
    return [stop - start for start, stop in pairwise(edges)]
