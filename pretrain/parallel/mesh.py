"""ProcessMesh: a layout and its live process groups, passed by hand; ModelMesh: what of it the layers of a model see.

A group of one rank is the normal case and holds no process group, so that model code never asks whether it is distributed:
a collective over an axis of size 1 returns its input. One process without torch.distributed is `ProcessMesh.single()`.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist

from pretrain.parallel.layout import AXIS_NAMES, AxisName, ParallelLayout


@dataclass(frozen=True)
class Axis:
    """The ranks along one axis of the mesh, seen from this rank."""

    name: AxisName
    rank: int
    """Coordinate of this rank along the axis."""
    ranks: tuple[int, ...]
    """Global ranks of the group, in the order of the axis."""
    group: dist.ProcessGroup | None
    """None for a group of one."""

    @staticmethod
    def single(name: AxisName) -> "Axis":
        """An axis of one rank."""
        return Axis(name, 0, (0,), None)

    @property
    def size(self) -> int:
        """Number of ranks in the group."""
        return len(self.ranks)


@dataclass(frozen=True)
class ProcessMesh:
    """A layout with this rank's axes and its device."""

    layout: ParallelLayout
    rank: int
    device: torch.device
    pipe: Axis
    data: Axis
    """Ranks over which gradients are averaged: batch x ring x ulysses."""
    model: Axis
    batch: Axis
    """Ranks that take other samples."""
    ring: Axis
    ulysses: Axis
    expert: Axis
    """Ranks that hold other experts: consecutive ones of the data axis."""
    expert_data: Axis
    """Ranks that hold the same experts."""

    @staticmethod
    def single(device: torch.device | None = None) -> "ProcessMesh":
        """One process, no torch.distributed."""
        axes = {name: Axis.single(name) for name in AXIS_NAMES}
        return ProcessMesh(ParallelLayout(), 0, device or torch.device("cpu"), **axes)

    @staticmethod
    def create(layout: ParallelLayout, device: torch.device) -> "ProcessMesh":
        """The mesh of an initialised world; every rank must call it at the same point.

        Raises ValueError where the world has another size than the layout.
        """
        world, rank = dist.get_world_size(), dist.get_rank()
        if world != layout.world_size:
            raise ValueError(f"layout {layout.describe()} has {layout.world_size} ranks, the world has {world}")
        axes: dict[str, Axis] = {}
        groups: dict[tuple[int, ...], dist.ProcessGroup | None] = {}
        for name in AXIS_NAMES:
            for ranks in layout.groups(name):
                if len(ranks) > 1 and ranks not in groups:  # axes that are the same ranks share a group
                    groups[ranks] = cast("dist.ProcessGroup | None", dist.new_group(list(ranks)))
                if rank in ranks:
                    axes[name] = Axis(name, ranks.index(rank), ranks, groups.get(ranks))
        return ProcessMesh(layout, rank, device, **axes)

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the first pipeline stage."""
        return self.pipe.rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the last pipeline stage."""
        return self.pipe.rank == self.pipe.size - 1
