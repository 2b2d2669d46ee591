"""Is a committed checkpoint what was written? No torch: `pretrain checkpoint verify` and the ranks use the same code.

Every byte is read and hashed, about 5 GB/s a core from the page cache and as fast as the disk otherwise; ranks share
the files among themselves. A damaged file is named, never repaired.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pretrain.checkpoint.coverage import check_whole
from pretrain.checkpoint.format import (
    CheckpointRef,
    DamagedFile,
    Marker,
    RankIndex,
    read_index,
    read_marker,
    read_metadata,
)
from pretrain.errors import CheckpointError
from pretrain.files import hash_file


def verify(ref: CheckpointRef) -> None:
    """Checks everything in one process. Raises CheckpointError, naming the first damaged file."""
    for problem in problems(ref, reader=0, readers=1):
        raise problem


def problems(ref: CheckpointRef, *, reader: int, readers: int) -> Iterator[CheckpointError]:
    """What is wrong with a checkpoint, as far as one of several readers looks.

    Reader 0 checks marker and metadata, and that the indexes together hold every parameter; the files of the ranks are dealt
    out among all readers. Together they read every byte.
    """
    try:
        marker = read_marker(ref)
    except DamagedFile as damage:
        yield damage
        return
    if reader == 0:
        yield from _overall_problems(ref, marker)
    for rank in range(reader, len(marker.indexes), readers):
        try:
            check_tensor_file(ref.path, read_index(ref, marker, rank))
        except DamagedFile as damage:
            yield damage


def check_tensor_file(folder: Path, index: RankIndex) -> None:
    """Raises DamagedFile where a tensor file is not what its index says."""
    path = folder / index.file
    try:
        size = path.stat().st_size
        found = hash_file(path)
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({error.strerror})") from error
    if size != index.size:
        raise DamagedFile(path, f"has {size} bytes, {index.size} were written")
    if found != index.hash:
        raise DamagedFile(path, f"its hash is {found}, written was {index.hash}: the content has changed")


def _overall_problems(ref: CheckpointRef, marker: Marker) -> Iterator[CheckpointError]:
    try:
        metadata = read_metadata(ref, marker)
        if (metadata.step, metadata.generation) != (ref.step, ref.generation):
            yield DamagedFile(ref.path, f"metadata.json belongs to step {metadata.step}")
    except DamagedFile as damage:
        yield damage
    try:
        check_whole(_indexes(ref, marker))
    except DamagedFile:
        return  # the reader of that index reports it
    except CheckpointError as gap:
        yield CheckpointError(f"{ref.path}: {gap}")


def _indexes(ref: CheckpointRef, marker: Marker) -> Iterable[RankIndex]:
    return (read_index(ref, marker, rank) for rank in range(len(marker.indexes)))
