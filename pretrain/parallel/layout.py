"""ParallelLayout: pure arithmetic on ranks. No torch, no process group, no state.

The grid has three axes in the order pipe, data, model; model is innermost, so the ranks of a tensor group are neighbours
and share a node's fast links. It is DeepSpeed's `PipeModelDataParallelTopology`; a test in tests/engine holds the two
against each other.
"""

from dataclasses import dataclass
from typing import Literal

AxisName = Literal["pipe", "data", "model"]
AXIS_NAMES: tuple[AxisName, ...] = ("pipe", "data", "model")


@dataclass(frozen=True)
class Coordinates:
    """Where a rank lies in the grid."""

    pipe: int
    data: int
    model: int


@dataclass(frozen=True)
class ParallelLayout:
    """A grid of pp x dp x tp ranks."""

    pp: int = 1
    dp: int = 1
    tp: int = 1

    def __post_init__(self) -> None:
        if min(self.pp, self.dp, self.tp) < 1:
            raise ValueError(f"every axis of a layout has at least one rank, not {self}")

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.dp * self.tp

    def size(self, axis: AxisName) -> int:
        """Number of ranks along an axis."""
        return {"pipe": self.pp, "data": self.dp, "model": self.tp}[axis]

    def coordinates(self, rank: int) -> Coordinates:
        """Coordinates of a global rank. Raises IndexError outside the grid."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside a world of {self.world_size}")
        rest, model = divmod(rank, self.tp)
        pipe, data = divmod(rest, self.dp)
        return Coordinates(pipe, data, model)

    def rank(self, pipe: int, data: int, model: int) -> int:
        """Global rank at the given coordinates."""
        return (pipe * self.dp + data) * self.tp + model

    def groups(self, axis: AxisName) -> list[tuple[int, ...]]:
        """All groups of an axis: the ranks that differ in that coordinate alone, each in the order of it."""
        found: dict[tuple[int, int], list[int]] = {}
        for rank in range(self.world_size):
            c = self.coordinates(rank)
            key = {"pipe": (c.data, c.model), "data": (c.pipe, c.model), "model": (c.pipe, c.data)}[axis]
            found.setdefault(key, []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def describe(self) -> str:
        """The layout as users write it, `pp=2 dp=1 tp=2`."""
        return f"pp={self.pp} dp={self.dp} tp={self.tp}"
