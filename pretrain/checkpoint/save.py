"""Saving: every rank writes its pieces, the first rank commits them.

1. rank 0 makes a folder under a temporary name; 2. every rank writes its tensors and its index there, hashed on their
way and fsynced; 3. rank 0 checks that the indexes hold every parameter wholly, writes the metadata, renames the folder,
and writes the marker. A crash at any point leaves the previous checkpoint as the newest that counts. All ranks succeed
or fail together: after each phase they tell each other, so that none waits for one that met a full disk. Where a later launch
of the run has begun they fail; fence.py says why a save that returned counts.

The pieces are read from live views while training waits. Cost: a stall of bytes / disk bandwidth; hashing (about 5
GB/s) hides behind it.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from math import prod
from pathlib import Path

import torch

from pretrain.checkpoint.coverage import check_whole
from pretrain.checkpoint.fence import check_newest, read_fence
from pretrain.checkpoint.format import (
    FORMAT,
    METADATA,
    CheckpointRef,
    Marker,
    Metadata,
    RankIndex,
    Region,
    RunState,
    encode_marker,
    index_file_name,
    tensor_file_name,
)
from pretrain.checkpoint.tensor_file import TensorEntry, write_bytes, write_tensors
from pretrain.engine.protocol import Engine, Fragment
from pretrain.errors import CheckpointError, PretrainError, RankFault, StorageError
from pretrain.files import hash_bytes, storage_error, sync_folder, write_atomically
from pretrain.parallel.agreement import gather_texts
from pretrain.parallel.mesh import ProcessMesh

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
_TOLD_TO_ALL: dict[str, type[PretrainError]] = {
    kind.__name__: kind for kind in (CheckpointError, RankFault, StorageError)
}


@dataclass(frozen=True)
class SavedCheckpoint:
    """A committed checkpoint and what it cost."""

    ref: CheckpointRef
    num_bytes: int
    """Of all ranks' tensors."""
    duration_s: float


def save(engine: Engine, run_dir: Path, generation: int, state: RunState) -> SavedCheckpoint:
    """Saves and commits the engine's state at its present step; every rank calls it, and all return or raise alike.

    A generation reaches a step once: where it has committed this step already, that is the answer.

    Raises:
        StorageError: a full disk, a quota or a missing permission; what was begun is removed, training may go on and try again.
        RankFault: a later launch of the same run has begun; this one is stale and must stop.
        CheckpointError: the engine's fragments do not hold every parameter (a fault of the engine).
    """
    begin = time.monotonic()
    mesh = engine.mesh
    ref = CheckpointRef.at(run_dir, engine.step, generation)
    try:
        prepared = _in_all_ranks(mesh, ref, lambda: _prepare(ref, run_dir) if mesh.rank == 0 else "")
        if prepared[0] != "committed":
            hashes = _in_all_ranks(mesh, ref, lambda: _write_rank(engine, ref.partial))
            _in_all_ranks(mesh, ref, lambda: _commit(ref, run_dir, state, hashes) if mesh.rank == 0 else "")
        sizes = _in_all_ranks(mesh, ref, lambda: str((ref.path / tensor_file_name(mesh.rank)).stat().st_size))
    except StorageError:
        if mesh.rank == 0 and not ref.marker.exists():
            for begun in (ref.partial, ref.path):
                shutil.rmtree(begun, ignore_errors=True)
        raise
    return SavedCheckpoint(ref, sum(map(int, sizes)), time.monotonic() - begin)


def _in_all_ranks(mesh: ProcessMesh, ref: CheckpointRef, action: Callable[[], str]) -> list[str]:
    """The results of an action on every rank; where it fails on one, all raise what that one met."""
    try:
        told = {"result": action()}
    except OSError as error:
        told = {"error": StorageError.__name__, "message": _storage_message(error, ref)}
    except tuple(_TOLD_TO_ALL.values()) as error:
        told = {"error": _nearest(type(error)), "message": str(error)}
    answers = [json.loads(text) for text in gather_texts(json.dumps(told), mesh)]
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise _TOLD_TO_ALL[answer["error"]](f"rank {rank}, saving step {ref.step}: {answer['message']}")
    return [answer["result"] for answer in answers]


def _nearest(kind: type[BaseException]) -> str:
    return next(name for name, told in _TOLD_TO_ALL.items() if issubclass(kind, told))


def _storage_message(error: OSError, ref: CheckpointRef) -> str:
    where = error.filename or ref.partial
    message = str(storage_error(error, where) or f"{where}: {error.strerror}")
    if error.errno in (ENOSPC, EDQUOT):
        message = f"disk full: {message}"
    try:
        free = shutil.disk_usage(next(folder for folder in ref.partial.parents if folder.exists())).free
        written = sum(file.stat().st_size for file in ref.partial.iterdir())
    except OSError:
        return message
    return f"{message} ({written / 1e6:.1f} MB of this checkpoint are written, {free / 1e6:.1f} MB are free)"


def _prepare(ref: CheckpointRef, run_dir: Path) -> str:
    """Makes the temporary folder anew; `committed` where there is nothing to do."""
    _check_generation(ref, run_dir)
    if ref.marker.is_file():
        return "committed"
    for left_over in (ref.path, ref.partial):
        if left_over.exists():
            shutil.rmtree(left_over)
    ref.partial.mkdir(parents=True)
    return ""


def _check_generation(ref: CheckpointRef, run_dir: Path) -> None:
    if ref.generation not in read_fence(run_dir).registered:
        raise RankFault(
            f"generation {ref.generation} has no row in {run_dir}/attempts.jsonl: nothing it saved would count"
        )
    check_newest(run_dir, ref.generation)


def _write_rank(engine: Engine, folder: Path) -> str:
    """Writes this rank's tensors and index. Returns the hash of the index."""
    rank = engine.mesh.rank
    fragments = [fragment for fragment in engine.fragments() if fragment.writes and fragment.tensor.numel()]
    regions = tuple(_region(fragment) for fragment in fragments)
    entries = [
        TensorEntry(region.key, region.dtype, (region.count,), fragment.tensor.nbytes)
        for region, fragment in zip(regions, fragments, strict=True)
    ]
    written = write_tensors(folder / tensor_file_name(rank), entries, _contents(fragments))
    index = RankIndex(file=tensor_file_name(rank), size=written.size, hash=written.hash, regions=regions)
    return write_bytes(folder / index_file_name(rank), index.model_dump_json().encode()).hash


def _contents(fragments: list[Fragment]) -> Iterator[memoryview]:
    """The bytes of the pieces, one after another: a view where the tensor lies on the CPU, else one copy at a time."""
    for fragment in fragments:
        content = fragment.tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
        yield content.data


def _region(fragment: Fragment) -> Region:
    shard, count = fragment.shard, fragment.tensor.numel()
    return Region(
        kind=fragment.kind,
        name=shard.name,
        shape=shard.shape,
        starts=shard.starts,
        lengths=shard.lengths,
        local_shape=tuple(fragment.local_shape),
        start=fragment.start,
        count=count,
        dtype=_DTYPES[fragment.tensor.dtype],
        key=_key(fragment),
    )


def _key(fragment: Fragment) -> str:
    """`weight/layers.0.feed_forward.up.weight[0:48,0:32]`, and `+512:1024` where a piece of that slice is meant."""
    shard, count = fragment.shard, fragment.tensor.numel()
    box = ",".join(f"{start}:{start + n}" for start, n in zip(shard.starts, shard.lengths, strict=True))
    part = "" if count == prod(fragment.local_shape) else f"+{fragment.start}:{fragment.start + count}"
    return f"{fragment.kind}/{shard.name}[{box}]{part}"


def _commit(ref: CheckpointRef, run_dir: Path, state: RunState, hashes: list[str]) -> str:
    indexes = []
    for rank, expected in enumerate(hashes):
        path = ref.partial / index_file_name(rank)
        content = path.read_bytes()
        if hash_bytes(content) != expected:
            raise CheckpointError(f"{path}: the disk gives back something else than rank {rank} wrote")
        indexes.append(RankIndex.model_validate_json(content))
    check_whole(indexes)
    metadata = Metadata(
        format=FORMAT,
        step=ref.step,
        generation=ref.generation,
        model_hash=hash_bytes(json.dumps(state.model, sort_keys=True).encode()),
        state=state,
    )
    written = write_bytes(ref.partial / METADATA, metadata.model_dump_json(indent=1).encode())
    sync_folder(ref.partial)
    ref.partial.rename(ref.path)
    for folder in (ref.path.parent, ref.path.parent.parent, run_dir):
        sync_folder(folder)
    _check_generation(ref, run_dir)
    marker = Marker(
        format=FORMAT, step=ref.step, generation=ref.generation, metadata=written.hash, indexes=tuple(hashes)
    )
    write_atomically(ref.marker, encode_marker(marker))
    check_newest(run_dir, ref.generation)  # a launch that begins from here on sees the marker
    return ""
