"""Mixture: which source the n-th sample of a run comes from, and how many it has given before, in closed form.

    mixture = Mixture([Stage(length=None, weights=(3, 1))])
    mixture.slots(start, count)      # (sources, numbers): the number-th sample of that source
    mixture.counts(n)                # samples of each source among the first n

Up to four sources of a stage are the leaves of a binary tree. A node that has been asked k times asked its left child round(k *
left / (left + right)) times, and its right child the rest: both only ever grow, so every slot has one source, and the place in
each source is known without walking there. The rounding of a node adds at most one half, and a child inherits only its share of
its parent's: with four leaves that stays below 1 whatever the weights. More sources are dealt by `blend_windows`, within 1 of
exact too. So counts are right at *every* prefix, not at the ends of blocks alone. What one stage left a source short is made up
in the next, as far as that is possible within the bound.

Alternatives not taken: blocks of slots, each with the difference of two prefix counts W[d+1] n / Q - W[d] n / Q and shuffled by a
key: the counts are exact at the ends of blocks, off by tens within them, and a weight below 1 / block has to be refused; a draw
per slot: off by the square root of n. Cost: some 20 ns a slot and level of the tree; nothing is stored. All numbers are
Python integers where they can be large, int64 relative to them elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from pretrain.data.blend_windows import WindowBlend

RESOLUTION = 1 << 44
"""Weights are multiples of its inverse: after 10^10 samples the rounding of a weight has moved a count by less than 0.001."""
CHUNK = 1 << 16
"""Slots that are computed at once: CHUNK * 2 * RESOLUTION stays below 2^62."""
MOST_IN_TREE = 4
"""Sources up to which a stage is dealt by a tree; the one with the smallest bound is searched for."""


@dataclass(frozen=True)
class Stage:
    """A blend for some samples."""

    length: int | None
    """Samples; None: to the end of the run."""
    weights: tuple[int, ...]
    """Of each source; 0 for one that the stage leaves out. Their sum is at most RESOLUTION."""

    @property
    def is_windowed(self) -> bool:
        """Whether its slots are dealt by `blend_windows`."""
        return sum(weight > 0 for weight in self.weights) > MOST_IN_TREE


@dataclass(frozen=True)
class _Node:
    """A source, or two nodes."""

    weight: int
    source: int = -1
    left: "_Node | None" = None
    right: "_Node | None" = None
    phase: int = 0
    """Where in [0, 2 * weight) the left child's count starts; `weight` rounds to the nearest."""

    @property
    def leaves(self) -> tuple[int, ...]:
        if self.left is None or self.right is None:
            return (self.source,)
        return (*self.left.leaves, *self.right.leaves)


def integer_weights(weights: Sequence[float]) -> tuple[int, ...]:
    """Shares as multiples of 1 / RESOLUTION that sum to it; what is above 0 stays above 0 (largest remainders)."""
    total = sum(weights)
    exact = [weight / total * RESOLUTION for weight in weights]
    whole = [max(int(share), 1) if share > 0 else 0 for share in exact]
    order = sorted(range(len(whole)), key=lambda d: (whole[d] - exact[d], d))
    missing = RESOLUTION - sum(whole)
    for d in order[: max(missing, 0)]:
        whole[d] += 1
    whole[int(np.argmax(whole))] += RESOLUTION - sum(whole)
    return tuple(whole)


class Blend:
    """One stage of up to MOST_IN_TREE sources: counts and slots of a fixed set of weights."""

    def __init__(self, weights: Sequence[int], owed: Sequence[int] | None = None) -> None:
        """A blend.

        Args:
            weights: (D,) of the sources, not negative, one at least above 0.
            owed: (D,) what earlier stages left each source short of its exact count, in multiples of 1 / sum(weights).
        """
        assert 0 < sum(weights) <= RESOLUTION and min(weights) >= 0, f"weights {weights}"
        assert sum(weight > 0 for weight in weights) <= MOST_IN_TREE, f"{len(weights)} sources in a tree"
        self.num_sources = len(weights)
        self.total = sum(weights)
        self._root = _with_phases(_tree(tuple(weights)), self.total, owed or [0] * len(weights))

    @property
    def bound(self) -> float:
        """What no count is ever further than from its exact value."""
        return _bound(self._root)

    def counts(self, n: int) -> list[int]:
        """(D,) samples of each source among the first n."""
        found = [0] * self.num_sources
        _count(self._root, n, found)
        return found

    def slots(self, start: int, count: int, base: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """(count,) int16 sources and (count,) int64 numbers of the samples within them, counted from `base` on."""
        assert count <= CHUNK, f"{count} slots at once"
        sources, numbers = np.empty(count, np.int16), np.empty(count, np.int64)
        _assign(self._root, start, np.arange(count), sources, numbers, base)
        return sources, numbers


class Mixture:
    """Stage after stage; the counts of a source go on from one to the next."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """A mixture; the last stage goes on for ever, whatever its length."""
        assert stages and all(stage.length is not None for stage in stages[:-1])
        width = len(stages[0].weights)
        self.num_sources = width
        self._starts, self._bases = [0], [[0] * width]
        self._blends: list[Blend | WindowBlend] = []
        owed = [0] * width
        for stage in stages:
            blend = (WindowBlend if stage.is_windowed else Blend)(stage.weights, owed)
            self._blends.append(blend)
            if stage is stages[-1]:
                break
            length = stage.length or 0
            given = blend.counts(length)
            owed = [o + length * w - g * blend.total for o, w, g in zip(owed, stage.weights, given, strict=True)]
            self._starts.append(self._starts[-1] + length)
            self._bases.append([b + g for b, g in zip(self._bases[-1], given, strict=True)])

    def stage(self, n: int) -> int:
        """The number of the stage that position n lies in."""
        return int(np.searchsorted(self._starts, n, side="right")) - 1

    def counts(self, n: int) -> list[int]:
        """(D,) samples of each source among the first n of the run."""
        stage = self.stage(n)
        given = self._blends[stage].counts(n - self._starts[stage])
        return [base + g for base, g in zip(self._bases[stage], given, strict=True)]

    def slots(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(count,) int16 sources of positions start .. start + count - 1, and (count,) int64 numbers within them."""
        parts, stop = [], start + count
        while start < stop:
            stage = self.stage(start)
            end = self._starts[stage + 1] if stage + 1 < len(self._starts) else stop
            take = min(stop, end, start + CHUNK) - start
            parts.append(self._blends[stage].slots(start - self._starts[stage], take, self._bases[stage]))
            start += take
        if len(parts) == 1:
            return parts[0]
        empty = (np.empty(0, np.int16), np.empty(0, np.int64))
        sources, numbers = zip(empty, *parts, strict=True)
        return np.concatenate(sources), np.concatenate(numbers)


def _left_count(node: _Node, k: int) -> int:
    """How often the left child was asked when the node was asked k times."""
    assert node.left is not None
    return (2 * k * node.left.weight + node.phase) // (2 * node.weight)


def _count(node: _Node, k: int, found: list[int]) -> None:
    if node.left is None or node.right is None:
        found[node.source] = k
        return
    left = _left_count(node, k)
    _count(node.left, left, found)
    _count(node.right, k - left, found)


def _assign(
    node: _Node, first: int, at: np.ndarray, sources: np.ndarray, numbers: np.ndarray, base: Sequence[int]
) -> None:
    """Gives the slots `at`, which are the node's first-th and following, to the sources below it."""
    if not len(at):
        return
    if node.left is None or node.right is None:
        sources[at] = node.source
        numbers[at] = np.arange(base[node.source] + first, base[node.source] + first + len(at))
        return
    left, rest = divmod(2 * first * node.left.weight + node.phase, 2 * node.weight)
    # Relative to the Python integers above, so int64 is wide enough at any position.
    counts = (rest + 2 * node.left.weight * np.arange(len(at) + 1)) // (2 * node.weight)
    goes_left = np.diff(counts) > 0
    _assign(node.left, left, at[goes_left], sources, numbers, base)
    _assign(node.right, first - left, at[~goes_left], sources, numbers, base)


# --- trees --------------------------------------------------------------------------------------------------------------


def _join(left: _Node, right: _Node) -> _Node:
    return _Node(left.weight + right.weight, left=left, right=right)


@lru_cache(maxsize=64)
def _tree(weights: tuple[int, ...]) -> _Node:
    return _searched([_Node(weight, source) for source, weight in enumerate(weights) if weight])


def _searched(leaves: Sequence[_Node]) -> _Node:
    """The tree with the smallest bound, of all that there are."""
    weight = [sum(leaf.weight for d, leaf in enumerate(leaves) if some >> d & 1) for some in range(1 << len(leaves))]

    @cache
    def best(some: int, error: float) -> tuple[float, _Node]:
        if some & (some - 1) == 0:
            return error, leaves[some.bit_length() - 1]
        found: tuple[float, _Node] | None = None
        part = (some - 1) & some
        while part > (some ^ part):  # each pair of halves once
            sides = [best(side, 0.5 + error * weight[side] / weight[some]) for side in (part, some ^ part)]
            bound = max(sides[0][0], sides[1][0])
            if found is None or bound < found[0]:
                found = (bound, _join(sides[0][1], sides[1][1]))
            part = (part - 1) & some
        assert found is not None
        return found

    return best((1 << len(leaves)) - 1, 0.0)[1]


def _bound(node: _Node, error: float = 0.0) -> float:
    if node.left is None or node.right is None:
        return error
    return max(_bound(child, 0.5 + error * child.weight / node.weight) for child in (node.left, node.right))


def _with_phases(node: _Node, total: int, owed: Sequence[int]) -> _Node:
    """The tree with each node's rounding moved by what its left child is owed beyond its share of what the node is."""
    if node.left is None or node.right is None:
        return node
    of_left, of_node = sum(owed[d] for d in node.left.leaves), sum(owed[d] for d in node.leaves)
    phase = node.weight + (2 * node.weight * of_left - 2 * node.left.weight * of_node) // total
    return _Node(
        node.weight,
        left=_with_phases(node.left, total, owed),
        right=_with_phases(node.right, total, owed),
        phase=min(max(phase, 0), 2 * node.weight - 1),
    )
