"""Loading: the newest checkpoint that is whole, into whatever layout the run has now.

`find_checkpoint` walks from the newest committed checkpoint to older ones; each is verified by all ranks together, a
damaged one is reported and the one before it tried. `restore` fills the engine's live views: what a rank holds and what a
file holds are boxes of the same global parameters (boxes.py), and each intersection is copied from a memory map of the file. A
rank opens the files that have something for it and reads no byte that it does not need, whatever the two layouts are.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint.boxes import Box, Piece
from pretrain.checkpoint.coverage import ParameterKey
from pretrain.checkpoint.format import (
    CheckpointRef,
    Metadata,
    Region,
    committed_checkpoints,
    read_index,
    read_marker,
    read_metadata,
    tensor_file_name,
)
from pretrain.checkpoint.mapped_file import TensorFile
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
        source.fill(fragment)
        used.add((fragment.kind, fragment.shard.name))
    _check_all_used(source, used, engine.mesh)
    engine.finish_load(source.metadata.step, source.metadata.state.skipped_steps)
    saved_scale = source.metadata.state.loss_scale
    # A run that changed its precision has a scale on one side alone.
    if saved_scale is not None and engine.loss_scale is not None:
        engine.set_loss_scale(saved_scale)
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
    """Fills tensors with parts of one checkpoint."""

    def __init__(self, ref: CheckpointRef) -> None:
        marker = read_marker(ref)
        self.ref = ref
        self.metadata = read_metadata(ref, marker)
        self.parameters: dict[ParameterKey, list[_Place]] = defaultdict(list)
        """Where the pieces of each parameter's state lie."""
        self.bytes_read = 0
        """Taken from files so far."""
        for rank in range(len(marker.indexes)):
            for region in read_index(ref, marker, rank).regions:
                self.parameters[region.kind, region.name].append(_Place(rank, region))
        self._open: dict[int, TensorFile] = {}

    def fill(self, fragment: Fragment) -> None:
        """Gives a fragment its values; what pads it stays. Raises CheckpointError where the checkpoint has no such
        parameter."""
        shard = fragment.shard
        self._check_parameter(fragment.kind, shard)
        local_shape = tuple(fragment.local_shape)
        piece = Piece(shard.starts, shard.lengths, local_shape, fragment.start, fragment.tensor.numel())
        self._fill((fragment.kind, shard.name), piece, fragment.tensor)

    def whole(self, parameter: ParameterKey) -> torch.Tensor:
        """The global tensor of a parameter's state, without padding, on the CPU."""
        shape = self.parameters[parameter][0].region.shape
        result = torch.empty(shape, dtype=torch.float32)
        self._fill(parameter, Piece((0,) * len(shape), shape, shape, 0, result.numel()), result.view(-1))
        return result

    def _fill(self, parameter: ParameterKey, piece: Piece, flat: torch.Tensor) -> None:
        # Boxes are made here: of all that thousands of ranks wrote, a rank asks for a few parameters.
        stored = [(place, box) for place in self.parameters[parameter] for box in place.region.piece.boxes()]
        for wanted in piece.boxes():
            filled: set[Box] = set()  # a replica that was written too is not read again
            for place, box in stored:
                common = wanted.meet(box)
                if common is not None and common not in filled:
                    _view(flat, piece, common).copy_(self._read(place, common))
                    self.bytes_read += common.size * flat.element_size()
                    filled.add(common)

    def _read(self, place: _Place, box: Box) -> torch.Tensor:
        """A view of a file's memory map."""
        if place.rank not in self._open:
            if len(self._open) >= _OPEN_FILES:
                self._open.clear()
            self._open[place.rank] = TensorFile(self.ref.path / tensor_file_name(place.rank))
        return _view(self._open[place.rank].tensor(place.region.key), place.region.piece, box)

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


def _view(flat: torch.Tensor, piece: Piece, box: Box) -> torch.Tensor:
    """The elements of a box within the flat tensor of a piece that holds them all."""
    return flat.as_strided(box.lengths, piece.strides(), flat.storage_offset() + piece.offset(box.starts))


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
