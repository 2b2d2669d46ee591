"""Loading: the newest checkpoint that is whole, into whatever layout the run has now.

`find_checkpoint` walks from the newest committed checkpoint to older ones; each is verified by all ranks together, a
damaged one is reported and the one before it tried. `restore` fills the engine's live views: a piece that was written
exactly as it is asked for is read straight from its file; any other is cut from the global tensor, assembled by name
from all ranks' pieces, one parameter at a time. Cost of the second way: every rank reads every parameter, and holds one
whole at a time.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from pretrain.checkpoint.coverage import ParameterKey
from pretrain.checkpoint.format import (
    CheckpointRef,
    DamagedFile,
    Metadata,
    Region,
    committed_checkpoints,
    read_index,
    read_marker,
    read_metadata,
)
from pretrain.checkpoint.verify import problems, verify
from pretrain.engine.protocol import Engine, Fragment
from pretrain.errors import CheckpointError
from pretrain.parallel.agreement import gather_texts, world_sum
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import Shard

Report = Callable[[CheckpointRef, list[str]], None]
"""Receives a damaged checkpoint and what is wrong with it."""

_OPEN_FILES = 32


def find_checkpoint(run_dir: Path, mesh: ProcessMesh, report: Report) -> CheckpointRef | None:
    """The newest committed checkpoint that is whole, None where none was ever committed; the same answer on every rank.

    `report` is called on every rank for each damaged one that is passed over.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    first_damage = ""
    listed = json.dumps(
        [(ref.step, ref.generation) for ref in committed_checkpoints(run_dir)] if mesh.rank == 0 else []
    )
    for step, generation in json.loads(gather_texts(listed, mesh)[0]):
        ref = CheckpointRef.at(run_dir, step, generation)
        damage = verify_together(ref, mesh)
        if not damage:
            return ref
        first_damage = first_damage or damage[0]
        report(ref, damage)
    if first_damage:
        raise CheckpointError(
            f"every checkpoint of {run_dir} is damaged; the newest: {first_damage}. "
            f"Restore {run_dir}/checkpoints from a copy, or start a new run under another name"
        )
    return None


def verify_together(ref: CheckpointRef, mesh: ProcessMesh) -> list[str]:
    """What is wrong with a checkpoint, nothing if it is whole; all ranks share the reading and get the same answer."""
    found = [str(problem) for problem in problems(ref, reader=mesh.rank, readers=mesh.layout.world_size)]
    told = [message for text in gather_texts(json.dumps(found), mesh) for message in json.loads(text)]
    return list(dict.fromkeys(told))


def restore(engine: Engine, ref: CheckpointRef) -> Metadata:
    """Fills the engine with a verified checkpoint; every rank calls it. Returns what the run was.

    Raises:
        CheckpointError: the checkpoint is of another model; names the parameter that differs.
    """
    source = CheckpointReader(ref)
    used: set[ParameterKey] = set()
    for fragment in engine.fragments():
        fragment.tensor.copy_(source.piece(fragment))
        used.add((fragment.kind, fragment.shard.name))
    _check_all_used(source, used, engine.mesh)
    engine.finish_load(source.metadata.step, source.metadata.state.skipped_steps)
    return source.metadata


def load_weights(ref: CheckpointRef) -> dict[str, torch.Tensor]:
    """The whole fp32 weights by global name, for one process; the checkpoint is verified first.

    Raises CheckpointError where it is damaged.
    """
    verify(ref)
    source = CheckpointReader(ref)
    return {name: source.whole((kind, name)) for kind, name in source.parameters if kind == "weight"}


def read_run_state(ref: CheckpointRef) -> Metadata:
    """What the run was when it was saved. Raises CheckpointError where that file is damaged."""
    return read_metadata(ref, read_marker(ref))


@dataclass(frozen=True)
class _Place:
    """Where a region lies."""

    rank: int
    region: Region


class CheckpointReader:
    """Pieces and whole parameters of one checkpoint."""

    def __init__(self, ref: CheckpointRef) -> None:
        marker = read_marker(ref)
        self.ref = ref
        self.metadata = read_metadata(ref, marker)
        self.parameters: dict[ParameterKey, list[_Place]] = defaultdict(list)
        """Where the pieces of each parameter's state lie."""
        self._places: dict[tuple[object, ...], _Place] = {}
        for rank in range(len(marker.indexes)):
            for region in read_index(ref, marker, rank).regions:
                place = _Place(rank, region)
                self.parameters[region.kind, region.name].append(place)
                self._places[_identity(region)] = place
        self._open: dict[int, Any] = {}
        self._assembled: tuple[ParameterKey, torch.Tensor] | None = None

    def piece(self, fragment: Fragment) -> torch.Tensor:
        """(n,) the values of a fragment. Raises CheckpointError where the checkpoint has no such parameter."""
        shard, count = fragment.shard, fragment.tensor.numel()
        self._check_parameter(fragment.kind, shard)
        identity = (
            *(fragment.kind, shard.name, shard.dim, shard.start, shard.length),
            *(tuple(fragment.local_shape), fragment.start, count),
        )
        if place := self._places.get(identity):
            return self._read(place)
        local = local_part(self.whole((fragment.kind, shard.name)), shard, fragment.local_shape)
        return local.flatten().narrow(0, fragment.start, count)

    def whole(self, parameter: ParameterKey) -> torch.Tensor:
        """The global tensor of a parameter's state, without padding, assembled from all pieces; kept until the next is asked."""
        if self._assembled is not None and self._assembled[0] == parameter:
            return self._assembled[1]
        places = self.parameters[parameter]
        first = places[0].region
        result = torch.empty(first.shape, dtype=torch.float32)
        for part in _parts(places):
            region = part[0].region
            flat = torch.empty(prod(region.local_shape), dtype=torch.float32)
            for place in part:
                flat.narrow(0, place.region.start, place.region.count).copy_(self._read(place))
            local = flat.view(region.local_shape)
            if region.dim is None:
                result.copy_(local)
            elif region.dim_length:
                real = local.narrow(region.dim, 0, region.dim_length)
                result.narrow(region.dim, region.dim_start, region.dim_length).copy_(real)
        self._assembled = (parameter, result)
        return result

    def _read(self, place: _Place) -> torch.Tensor:
        if place.rank not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()
            path = self.ref.path / f"rank-{place.rank:05d}.safetensors"
            try:
                self._open[place.rank] = safe_open(path, framework="pt")
            except Exception as error:
                raise DamagedFile(path, f"is no safetensors file ({error})") from error
        return self._open[place.rank].get_tensor(place.region.key)

    def _check_parameter(self, kind: str, shard: Shard) -> None:
        places = self.parameters.get((kind, shard.name))
        if places is None:
            raise CheckpointError(
                f"{self.ref.path} holds no {kind} of the parameter {shard.name}: it is a checkpoint of another model"
            )
        if places[0].region.shape != tuple(shard.shape):
            raise CheckpointError(
                f"{self.ref.path} is a checkpoint of another model: {shard.name} has the shape "
                f"{list(places[0].region.shape)} there and {list(shard.shape)} in this run"
            )


def local_part(whole: torch.Tensor, shard: Shard, local_shape: tuple[int, ...]) -> torch.Tensor:
    """A shard as it lies in a rank's memory; what pads it is zero."""
    if shard.dim is None:
        return whole
    local = torch.zeros(local_shape, dtype=whole.dtype)
    if shard.length:
        local.narrow(shard.dim, 0, shard.length).copy_(shard.of(whole))
    return local


def _identity(region: Region) -> tuple[object, ...]:
    """What a region is, whoever wrote it; equal to that of the fragment that it was."""
    return (
        *(region.kind, region.name, region.dim, region.dim_start, region.dim_length),
        *(region.local_shape, region.start, region.count),
    )


def _parts(places: list[_Place]) -> Iterator[list[_Place]]:
    """Places grouped by the part of the model axis that they belong to."""
    parts: dict[tuple[int | None, int, int], list[_Place]] = defaultdict(list)
    for place in places:
        parts[place.region.dim, place.region.dim_start, place.region.dim_length].append(place)
    yield from parts.values()


def _check_all_used(source: CheckpointReader, used: set[ParameterKey], mesh: ProcessMesh) -> None:
    """Raises CheckpointError for a parameter of the checkpoint that no rank has; every rank calls it."""
    names = sorted(source.parameters)
    counts = world_sum([float(name in used) for name in names], mesh)
    unused = [f"{kind} of {name}" for (kind, name), count in zip(names, counts, strict=True) if not count]
    if unused:
        raise CheckpointError(
            f"{source.ref.path} is a checkpoint of another model: this run has no place for its {unused[0]}"
            + (f" and {len(unused) - 1} more" if len(unused) > 1 else "")
        )
