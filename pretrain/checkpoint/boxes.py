"""Pieces of parameters as boxes of global indices: what two pieces have in common, and whether pieces fill a parameter. No
torch.

A *piece* is a contiguous range of a rank's flattened local tensor: what ZeRO leaves of a tensor slice. In global indices it is
a few boxes, at most 2 n - 1 for n dims: the end of a first row, whole rows, the beginning of a last one, each cut at the real
extent of the slice (a padded vocabulary). A piece of one layout then meets a piece of another in intersections of boxes, which
are strided views of both: no parameter is ever assembled to be cut again.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

Index = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """Indices from `starts` up to, without, `stops`."""

    starts: Index
    stops: Index

    @property
    def lengths(self) -> Index:
        """Along each dim."""
        return tuple(stop - start for start, stop in zip(self.starts, self.stops, strict=True))

    @property
    def size(self) -> int:
        """Elements."""
        return prod(self.lengths)

    def meet(self, other: "Box") -> "Box | None":
        """What both hold; None for nothing."""
        starts = tuple(map(max, self.starts, other.starts))
        stops = tuple(map(min, self.stops, other.stops))
        return Box(starts, stops) if all(a < b for a, b in zip(starts, stops, strict=True)) else None


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + count) of a flattened local tensor that holds a box of a global parameter."""

    starts: Index
    """Of the local tensor's box within the parameter."""
    lengths: Index
    """Its real extent; the local tensor may be longer."""
    local_shape: Index
    start: int
    count: int

    def boxes(self) -> list[Box]:
        """The real elements, as boxes of global indices that do not overlap."""
        found = []
        for local in _flat_boxes(self.local_shape, self.start, self.start + self.count):
            real = local.meet(Box((0,) * len(self.lengths), self.lengths))
            if real is not None:
                found.append(
                    Box(
                        tuple(map(sum, zip(self.starts, real.starts, strict=True))),
                        tuple(map(sum, zip(self.starts, real.stops, strict=True))),
                    )
                )
        return found

    def strides(self) -> Index:
        """Of the local tensor, in elements."""
        return tuple(prod(self.local_shape[dim + 1 :]) for dim in range(len(self.local_shape)))

    def offset(self, index: Index) -> int:
        """Place of a global index within the piece, in elements."""
        places = zip(index, self.starts, self.strides(), strict=True)
        return sum((i - first) * stride for i, first, stride in places) - self.start


def _flat_boxes(shape: Index, start: int, stop: int) -> Iterator[Box]:
    """The boxes that a range of a flattened tensor consists of."""
    if start >= stop:
        return
    if not shape:
        yield Box((), ())
        return
    row = prod(shape[1:])
    first, last = start // row, (stop - 1) // row
    if first == last and len(shape) > 1:
        for inner in _flat_boxes(shape[1:], start - first * row, stop - first * row):
            yield Box((first, *inner.starts), (first + 1, *inner.stops))
        return
    whole_from, whole_to = -(-start // row), stop // row
    if start < whole_from * row:
        yield from _flat_boxes(shape, start, whole_from * row)
    if whole_from < whole_to:
        yield Box((whole_from, *(0 for _ in shape[1:])), (whole_to, *shape[1:]))
    if whole_to * row < stop:
        yield from _flat_boxes(shape, whole_to * row, stop)


def first_gap(shape: Index, boxes: Iterable[Box]) -> Index | None:
    """An index within `shape` that no box holds; None where they fill it. Boxes may overlap."""
    return _first_gap(shape, [(box.starts, box.stops) for box in boxes])


def _first_gap(shape: Index, boxes: Sequence[tuple[Index, Index]]) -> Index | None:
    if 0 in shape:
        return None
    if not shape:
        return None if boxes else ()
    waiting = sorted(boxes, key=lambda box: box[0][0])
    cuts = sorted({0, shape[0], *(b[0][0] for b in boxes), *(b[1][0] for b in boxes)})
    active: list[tuple[int, int, tuple[Index, Index]]] = []
    position = 0
    for low, high in pairwise(cuts):
        while position < len(waiting) and waiting[position][0][0] <= low:
            heapq.heappush(active, (waiting[position][1][0], position, waiting[position]))
            position += 1
        while active and active[0][0] <= low:
            heapq.heappop(active)
        if low < shape[0] and high <= shape[0]:
            inner = [(starts[1:], stops[1:]) for _, _, (starts, stops) in active]
            gap = _first_gap(shape[1:], inner)
            if gap is not None:
                return (low, *gap)
    return None
