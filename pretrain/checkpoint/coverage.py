"""Whether the pieces that all ranks hold are together every parameter, without a gap. Interval arithmetic; no tensor is read.

A missing piece would load as whatever memory held: it must be found when a checkpoint is committed (a fault of the
engine) and when it is loaded. Overlaps are allowed, for replicas may be written twice; what they hold is equal.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from math import prod

from pretrain.checkpoint.format import RankIndex, Region
from pretrain.errors import CheckpointError

ParameterKey = tuple[str, str]
"""(kind, name)"""


def check_whole(indexes: Iterable[RankIndex]) -> None:
    """Raises CheckpointError, naming the parameter, where the regions of all ranks leave a gap or contradict each other."""
    regions = regions_by_parameter(chain.from_iterable(index.regions for index in indexes))
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, set[str]] = defaultdict(set)
    for (kind, name), pieces in regions.items():
        _check_parameter(kind, name, pieces)
        kinds[name].add(kind)
        if shapes.setdefault(name, pieces[0].shape) != pieces[0].shape:
            raise CheckpointError(f"{name}: its {kind} has shape {pieces[0].shape}, its other state {shapes[name]}")
    all_kinds = set().union(*kinds.values())
    for name, present in kinds.items():
        if missing := all_kinds - present:
            raise CheckpointError(f"{name}: its {', '.join(sorted(missing))} is missing from the checkpoint")


def regions_by_parameter(regions: Iterable[Region]) -> Mapping[ParameterKey, list[Region]]:
    """The regions of each parameter's state."""
    found: dict[ParameterKey, list[Region]] = defaultdict(list)
    for region in regions:
        found[region.kind, region.name].append(region)
    return found


def _check_parameter(kind: str, name: str, pieces: list[Region]) -> None:
    first = pieces[0]
    parts: dict[tuple[int | None, int, int], list[Region]] = defaultdict(list)
    for piece in pieces:
        if piece.shape != first.shape:
            raise CheckpointError(f"{name}: pieces of its {kind} say shape {first.shape} and {piece.shape}")
        parts[piece.dim, piece.dim_start, piece.dim_length].append(piece)
    for part in parts.values():
        size = prod(part[0].local_shape)
        if not _covers(size, ((piece.start, piece.start + piece.count) for piece in part)):
            raise CheckpointError(f"{name}: its {kind} is not wholly in the checkpoint (a flat piece is missing)")
    if any(dim is None for dim, _, _ in parts) or first.dim is None:
        return
    dims = {dim for dim, _, _ in parts if dim is not None}
    spans = [(start, start + length) for _, start, length in parts]
    if len(dims) > 1 or not _covers(first.shape[first.dim], spans):
        raise CheckpointError(
            f"{name}: its {kind} is not wholly in the checkpoint (a part of dim {first.dim} is missing)"
        )


def _covers(size: int, spans: Iterable[tuple[int, int]]) -> bool:
    """Whether intervals [start, stop) fill [0, size)."""
    reached = 0
    for start, stop in sorted(spans):
        if start > reached:
            return False
        reached = max(reached, stop)
    return reached >= size
