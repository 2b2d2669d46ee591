"""Which part of a global parameter a rank holds: the one record that initialization, gradients, checkpoints and parity read.

The part is a box: one contiguous range along every dim, each whole or split over one axis of the mesh. Every parameter of the
model carries its record as the attribute `shard`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from pretrain.parallel.layout import AxisName
from pretrain.parallel.mesh import Axis


@dataclass(frozen=True)
class Shard:
    """Part of a global parameter that the local tensor holds."""

    shape: tuple[int, ...]
    """Shape of the global parameter, without any padding."""
    starts: tuple[int, ...]
    """First index of the local part along each dim."""
    lengths: tuple[int, ...]
    """Indices along each dim that are real; the local tensor may be longer (padding of a vocabulary), never shorter."""
    split_over: frozenset[AxisName] = frozenset()
    """Axes of more than one rank whose ranks hold other parts; along all other axes the parameter is replicated."""
    name: str = ""
    """Global name, the same under every layout; filled in when the layer is placed in a model."""

    @staticmethod
    def whole(shape: tuple[int, ...], name: str = "") -> "Shard":
        """All of a parameter."""
        return Shard(shape, (0,) * len(shape), shape, name=name)

    @staticmethod
    def split(shape: tuple[int, ...], axes: Mapping[int, Axis]) -> tuple["Shard", tuple[int, ...]]:
        """An equal part along each dim of `axes`, and the local tensor's shape: rounded up where a dim does not divide."""
        starts, lengths, local = [0] * len(shape), list(shape), list(shape)
        for dim, axis in axes.items():
            part = -(-shape[dim] // axis.size)
            starts[dim] = min(part * axis.rank, shape[dim])
            lengths[dim], local[dim] = min(part, shape[dim] - starts[dim]), part
        over: frozenset[AxisName] = frozenset(axis.name for axis in axes.values() if axis.size > 1)
        return Shard(shape, tuple(starts), tuple(lengths), over), tuple(local)

    def named(self, name: str) -> "Shard":
        """The same part under a global name."""
        return replace(self, name=name)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The local part (without padding) of a global tensor; a view."""
        return whole[tuple(slice(start, start + n) for start, n in zip(self.starts, self.lengths, strict=True))]

    def real(self, local: torch.Tensor) -> torch.Tensor:
        """The local tensor without its padding; a view."""
        return local[tuple(slice(n) for n in self.lengths)]


def shard_of(parameter: torch.Tensor) -> Shard:
    """The record of a parameter. AttributeError is a fault of the layer that made it."""
    return parameter.shard  # type: ignore[attr-defined]


def set_shard(parameter: torch.nn.Parameter, shard: Shard) -> None:
    """Attaches the record, and DeepSpeed's mark (`tensor_model_parallel`) where, and only where, the model axis splits it.

    An unmarked split parameter, or a marked replicated one, gives a wrong gradient norm.
    """
    parameter.shard = shard  # type: ignore[attr-defined]
    if "model" in shard.split_over:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
