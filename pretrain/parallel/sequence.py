"""Which positions of a sequence a rank holds: over the context axes (ring, ulysses), and within a tensor group.

Legend: S positions of the whole sequence, C = S / (ring x ulysses) of a rank of the context group, L of the stream.

Ring: the sequence is cut into 2R chunks, and rank r holds chunks r and 2R-1-r, so that causal work is the same for all (zigzag;
Brandon et al. 2023, Striped attention, has the idea of balance). Its positions stand in ascending order. The ulysses ranks of
one ring coordinate hold consecutive parts of these (Jacobs et al. 2023, DeepSpeed Ulysses): once heads are exchanged for
positions, each sees them all in order.

Streams: what a branch adds to is either the same on all ranks of a tensor group (`WholeStream`, Shoeybi et al. 2019), or split
among them by positions (`SplitStream`; sequence parallelism, Korthikanti et al. 2022, section 4.2.2). A layer knows neither: it
calls `enter` before column-parallel products, `leave` behind row-parallel ones, `shared` on a weight that it applies to the
stream.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from pretrain.parallel.collectives import (
    copy_to_axis,
    gather_sequence,
    reduce_from_axis,
    scatter_sequence,
)
from pretrain.parallel.mesh import Axis, ProcessMesh
from pretrain.parallel.weight_gradients import IMMEDIATE, WeightGradients


@dataclass(frozen=True)
class SequenceSplit:
    """A rank's part of every sequence, over the context axes."""

    ring: Axis
    ulysses: Axis

    @property
    def parts(self) -> int:
        """Ranks that share a sequence."""
        return self.ring.size * self.ulysses.size

    def positions(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """(C,) int64: global positions of this rank, for whole sequences of `length`."""
        of_ring = self.ring_positions(length, device)
        part = length // self.parts
        return of_ring[part * self.ulysses.rank : part * (self.ulysses.rank + 1)]

    def ring_positions(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """(S / ring,) int64: global positions of all ranks of this rank's ring coordinate, ascending."""
        return zigzag(length, self.ring.rank, self.ring.size, device)

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """(B, S, ...) to this rank's (B, C, ...)."""
        return whole if self.parts == 1 else whole[:, self.positions(whole.shape[1], whole.device)]


def zigzag(length: int, rank: int, size: int, device: torch.device | None = None) -> torch.Tensor:
    """(length / size,) positions of a ring rank: chunks `rank` and `2 size - 1 - rank` of 2 size, ascending."""
    if size == 1:
        return torch.arange(length, device=device)
    chunks = zigzag_chunks(length, rank, size)
    return torch.cat([torch.arange(chunk.start, chunk.stop, device=device) for chunk in chunks])


def zigzag_chunks(length: int, rank: int, size: int) -> tuple[range, range]:
    """The two runs of global positions that a ring rank holds."""
    chunk = length // (2 * size)
    assert chunk * 2 * size == length, f"{length} positions over a ring of {size} ranks"
    first, second = chunk * rank, chunk * (2 * size - 1 - rank)
    return range(first, first + chunk), range(second, second + chunk)


class Stream(ABC):
    """How the residual stream lies among the ranks of a tensor group."""

    def __init__(self, axis: Axis, sequence: SequenceSplit) -> None:
        self.axis = axis
        self.sequence = sequence

    @abstractmethod
    def enter(self, stream: torch.Tensor) -> torch.Tensor:
        """(B, L, D) of the stream to (B, C, D), the same on all ranks, whose gradient is summed over them."""

    @abstractmethod
    def leave(self, addend: torch.Tensor) -> torch.Tensor:
        """(B, C, D), a rank's addend, to the sum in the stream, (B, L, D)."""

    @abstractmethod
    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        """A replicated weight that is applied to the stream; its gradient becomes that of all positions of the rank's C."""

    @abstractmethod
    def take(self, local: torch.Tensor) -> torch.Tensor:
        """(B, C, ...), the same on all ranks and without a gradient, to the stream's positions (B, L, ...)."""

    @abstractmethod
    def positions(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """(L,) int64: global positions of a stream of L = `length`."""


class WholeStream(Stream):
    """Every rank of the tensor group holds all C positions: L = C."""

    def enter(self, stream: torch.Tensor) -> torch.Tensor:
        """Forward: the stream. Backward: an all-reduce."""
        return copy_to_axis(stream, self.axis)

    def leave(self, addend: torch.Tensor) -> torch.Tensor:
        """Forward: an all-reduce. Backward: the gradient."""
        return reduce_from_axis(addend, self.axis)

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight: every rank sees the same stream."""
        return weight

    def take(self, local: torch.Tensor) -> torch.Tensor:
        """The tensor itself."""
        return local

    def positions(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """Those of the context rank."""
        return self.sequence.positions(length * self.sequence.parts, device)


class SplitStream(Stream):
    """Each rank of the tensor group holds an equal, consecutive part of the C positions: L = C / tp."""

    def enter(self, stream: torch.Tensor) -> torch.Tensor:
        """Forward: an all-gather over positions. Backward: a reduce-scatter."""
        return gather_sequence(stream, self.axis)

    def leave(self, addend: torch.Tensor) -> torch.Tensor:
        """Forward: a reduce-scatter over positions. Backward: an all-gather."""
        return scatter_sequence(addend, self.axis)

    def shared(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight, whose gradient is summed over the ranks: each has that of its positions alone."""
        return copy_to_axis(weight, self.axis)

    def take(self, local: torch.Tensor) -> torch.Tensor:
        """This rank's positions."""
        part = local.shape[1] // self.axis.size
        return local.narrow(1, part * self.axis.rank, part)

    def positions(self, length: int, device: torch.device | None = None) -> torch.Tensor:
        """The rank's part of those of the context rank."""
        whole = self.sequence.positions(length * self.axis.size * self.sequence.parts, device)
        return whole[length * self.axis.rank : length * (self.axis.rank + 1)]


LocalAttention = Callable[..., torch.Tensor]
"""Queries (B, S', H', K), keys and values (B, T', G', K), and what else it takes, to (B, S', H', K)."""


def attend_here(attention: LocalAttention) -> LocalAttention:
    """Where no heads are exchanged for positions."""
    return attention


@dataclass(frozen=True)
class ModelMesh:
    """What the layers of a model see of the mesh: all that depends on the layout, passed to them by hand."""

    model: Axis = field(default_factory=lambda: Axis.single("model"))
    sequence: SequenceSplit = field(default_factory=lambda: SequenceSplit(Axis.single("ring"), Axis.single("ulysses")))
    stream: Stream = field(
        default_factory=lambda: WholeStream(
            Axis.single("model"), SequenceSplit(Axis.single("ring"), Axis.single("ulysses"))
        )
    )
    expert: Axis = field(default_factory=lambda: Axis.single("expert"))
    weight_gradients: WeightGradients = IMMEDIATE
    exchange: Callable[[LocalAttention], LocalAttention] = attend_here
    """Makes attention over whole sequences and some heads into one over parts of sequences and all heads (Ulysses)."""

    @staticmethod
    def of(
        mesh: ProcessMesh, stream: type[Stream] = WholeStream, weight_gradients: WeightGradients = IMMEDIATE
    ) -> "ModelMesh":
        """A rank's, with the stream whole or split."""
        sequence = SequenceSplit(mesh.ring, mesh.ulysses)
        return ModelMesh(mesh.model, sequence, stream(mesh.model, sequence), mesh.expert, weight_gradients)
