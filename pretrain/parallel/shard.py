"""Which part of a global parameter a rank holds: the one record that initialization, gradients, checkpoints and parity read.

A parameter is split along at most one dim, in one contiguous range; replicated parameters have `dim=None`. Every parameter of
the model carries its record as the attribute `shard`.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Shard:
    """Part of a global parameter that the local tensor holds."""

    shape: tuple[int, ...]
    """Shape of the global parameter, without any padding."""
    dim: int | None = None
    """Dim that is split over the model axis; None: the parameter is replicated there."""
    start: int = 0
    """First index of the local part along `dim`."""
    length: int = 0
    """Indices along `dim` that are real; the local tensor may be longer (padding of a vocabulary), never shorter."""
    name: str = ""
    """Global name, the same under every layout; filled in when the layer is placed in a model."""

    def named(self, name: str) -> "Shard":
        """The same part under a global name."""
        return replace(self, name=name)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The local part (without padding) of a global tensor; a view."""
        return whole if self.dim is None else whole.narrow(self.dim, self.start, self.length)

    def real(self, local: torch.Tensor) -> torch.Tensor:
        """The local tensor without its padding; a view."""
        return local if self.dim is None else local.narrow(self.dim, 0, self.length)


def shard_of(parameter: torch.Tensor) -> Shard:
    """The record of a parameter. AttributeError is a fault of the layer that made it."""
    return parameter.shard  # type: ignore[attr-defined]


def set_shard(parameter: torch.nn.Parameter, shard: Shard) -> None:
    """Attaches the record, and DeepSpeed's mark (`tensor_model_parallel`) where, and only where, the parameter is split.

    An unmarked split parameter, or a marked replicated one, gives a wrong gradient norm.
    """
    parameter.shard = shard  # type: ignore[attr-defined]
    split = shard.dim is not None and shard.length < shard.shape[shard.dim]
    if split:
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]
