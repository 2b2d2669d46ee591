"""ParallelLayout: pure arithmetic on ranks. No torch, no process group, no state.

The grid has three axes in the order pipe, data, model; model is innermost, so the ranks of a tensor group are neighbours
and share a node's fast links. It is DeepSpeed's `PipeModelDataParallelTopology`; a test in tests/engine holds the two
against each other.

The data axis, over which gradients are averaged, is itself a grid: batch, ring, ulysses, with ulysses innermost. Ranks that
differ in the batch coordinate take other samples; those of one *context group* (ring x ulysses) take parts of the same
sequences. Experts are spread over blocks of `ep` consecutive data coordinates, across the other two.
"""

from dataclasses import dataclass
from typing import Literal

AxisName = Literal["pipe", "data", "model", "batch", "ring", "ulysses", "expert", "expert_data"]
AXIS_NAMES: tuple[AxisName, ...] = ("pipe", "data", "model", "batch", "ring", "ulysses", "expert", "expert_data")
"""The three of the grid, then those that the data axis is made of."""


@dataclass(frozen=True)
class Coordinates:
    """Where a rank lies in the grid."""

    pipe: int
    data: int
    model: int


@dataclass(frozen=True)
class ParallelLayout:
    """A grid of pp x (dp x ring x ulysses) x tp ranks; experts are spread over ep of the data ranks."""

    pp: int = 1
    dp: int = 1
    """Ranks that take other samples."""
    tp: int = 1
    ring: int = 1
    ulysses: int = 1
    ep: int = 1

    def __post_init__(self) -> None:
        if min(self.pp, self.dp, self.tp, self.ring, self.ulysses, self.ep) < 1:
            raise ValueError(f"every axis of a layout has at least one rank, not {self}")

    @property
    def context_size(self) -> int:
        """Ranks that share a sequence."""
        return self.ring * self.ulysses

    @property
    def data_size(self) -> int:
        """Ranks of the data axis, over which gradients are averaged."""
        return self.dp * self.context_size

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.pp * self.data_size * self.tp

    def size(self, axis: AxisName) -> int:
        """Number of ranks along an axis."""
        return {
            "pipe": self.pp,
            "data": self.data_size,
            "model": self.tp,
            "batch": self.dp,
            "ring": self.ring,
            "ulysses": self.ulysses,
            "expert": self.ep,
            "expert_data": self.data_size // self.ep,
        }[axis]

    def coordinates(self, rank: int) -> Coordinates:
        """Coordinates of a global rank. Raises IndexError outside the grid."""
        if not 0 <= rank < self.world_size:
            raise IndexError(f"rank {rank} is outside a world of {self.world_size}")
        rest, model = divmod(rank, self.tp)
        pipe, data = divmod(rest, self.data_size)
        return Coordinates(pipe, data, model)

    def rank(self, pipe: int, data: int, model: int) -> int:
        """Global rank at the given coordinates."""
        return (pipe * self.data_size + data) * self.tp + model

    def groups(self, axis: AxisName) -> list[tuple[int, ...]]:
        """All groups of an axis: the ranks that differ in that coordinate alone, each in the order of it.

        Raises ValueError where ep does not divide the data axis (pretrain.rules says so to users before).
        """
        if self.data_size % self.ep:
            raise ValueError(f"ep={self.ep} must divide the {self.data_size} ranks of the data axis")
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            c = self.coordinates(rank)
            batch, context = divmod(c.data, self.context_size)
            ring, ulysses = divmod(context, self.ulysses)
            expert_data, expert = divmod(c.data, self.ep)
            key = {
                "pipe": (c.data, c.model),
                "data": (c.pipe, c.model),
                "model": (c.pipe, c.data),
                "batch": (c.pipe, context, c.model),
                "ring": (c.pipe, batch, ulysses, c.model),
                "ulysses": (c.pipe, batch, ring, c.model),
                "expert": (c.pipe, expert_data, c.model),
                "expert_data": (c.pipe, expert, c.model),
            }[axis]
            found.setdefault(key, []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def sizes(self) -> dict[str, int]:
        """The axes as users name them: pp, dp and tp; ring, ulysses and ep where they are used."""
        further = {"ring": self.ring, "ulysses": self.ulysses, "ep": self.ep}
        return {"pp": self.pp, "dp": self.dp, "tp": self.tp} | {n: size for n, size in further.items() if size > 1}

    def describe(self) -> str:
        """The layout as users write it, `pp=2 dp=1 tp=2`."""
        return " ".join(f"{name}={size}" for name, size in self.sizes().items())
