"""Whether the pieces that all ranks hold are together every parameter, without a gap. Arithmetic on boxes; no tensor is read.

A missing piece would load as whatever memory held: it must be found when a checkpoint is committed (a fault of the
engine) and when it is loaded. Overlaps are allowed, for replicas may be written twice; what they hold is equal.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain

from pretrain.checkpoint.boxes import first_gap
from pretrain.checkpoint.format import RankIndex, Region
from pretrain.errors import CheckpointError

ParameterKey = tuple[str, str]
"""(kind, name)"""

TRAINED = frozenset({"weight", "exp_avg", "exp_avg_sq"})
"""Kinds that a trained parameter has all of, or (a file of weights alone) some of, like every other."""


def check_whole(indexes: Iterable[RankIndex]) -> None:
    """Raises CheckpointError, naming the parameter, where the regions of all ranks leave a gap or contradict each other."""
    regions = regions_by_parameter(chain.from_iterable(index.regions for index in indexes))
    shapes: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, set[str]] = defaultdict(set)
    for (kind, name), pieces in regions.items():
        _check_parameter(kind, name, pieces)
        if kind in TRAINED:
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
    shape = pieces[0].shape
    for piece in pieces:
        if piece.shape != shape:
            raise CheckpointError(f"{name}: pieces of its {kind} say shape {shape} and {piece.shape}")
    gap = first_gap(shape, (box for piece in pieces for box in piece.piece.boxes()))
    if gap is not None:
        raise CheckpointError(
            f"{name}: its {kind} is not wholly in the checkpoint (the element at {list(gap)} of {list(shape)} is missing)"
        )
