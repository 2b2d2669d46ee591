"""A shard whose tokens stay in a file of another project (Megatron's .bin): everything else lies in a small file of ours.

    header   64 bytes: magic, version, bytes of a token, block size, number of the root, bytes of the name, number of tokens and
             of documents, the byte of the target at which the tokens begin, bytes of the target
    index    a u64 anchor (the first token) for every 256th document, a u32 length for each
    blocks   XXH3-64 of every block of tokens
    name     of the target, relative to its root, UTF-8
    footer   XXH3-128 of source, tokenizer and config, XXH3-64 of all before, end magic

The manifest lists the roots, absolute folders, so that a collection of files can move: its new folder is written into
manifest.json, and the hash of the shard stays. Names may not leave their root, as those of shards may not leave the data folder.

Reads are those of a shard of ours: a view of a memory map, its blocks checked when they are first read; the target's tokens begin
at a multiple of their size. The index is checked whole when it is opened: 4 bytes a document. Alternative not taken: reading
the other project's index at each start, which costs a pass over it and finds no damage.
"""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

import numpy as np
import xxhash

from pretrain.data.shard_file import ANCHOR_DOCUMENTS, BLOCK_BYTES, Origin, TokenShard, Verify
from pretrain.data.shard_table import ShardRecord
from pretrain.errors import DataError
from pretrain.files import hash_bytes, path_within, told_as_storage_error, write_atomically

LINK_SUFFIX = ".tokens-index"
"""Of the names of such files; by it a reader of the manifest knows them."""

_HEADER = Struct("<8sIIIIQQQQI4x")
_FOOTER = Struct("<16s16s16sQ8s")
_MAGIC, _END_MAGIC, _VERSION = b"TOKLINKS", b"SKNILKOT", 1


@dataclass(frozen=True)
class Target:
    """Where the tokens of a linked shard lie."""

    root: int
    """Place in the manifest's roots."""
    name: str
    """Of the file, relative to the root."""
    first_byte: int
    file_bytes: int
    """Of the whole file: one that has grown or was cut is another."""


@dataclass(frozen=True)
class LinkLayout:
    """Sizes of a linked shard. Bytes are counted within its tokens, so blocks cover tokens alone."""

    token_bytes: int
    block_bytes: int
    tokens: int
    documents: int
    name_bytes: int
    pairs: bool = False

    @property
    def footer_at(self) -> int:
        """Bytes of the tokens: all that has block hashes."""
        return self.tokens * self.token_bytes

    @property
    def blocks(self) -> int:
        """Blocks of tokens."""
        return -(-self.footer_at // self.block_bytes)

    @property
    def lengths_at(self) -> int:
        """Where the lengths begin in the file."""
        return _HEADER.size + 8 * -(-self.documents // ANCHOR_DOCUMENTS)

    @property
    def hashes_at(self) -> int:
        """Where the hashes of blocks begin in the file."""
        return _round8(self.lengths_at + 4 * self.documents)

    @property
    def name_at(self) -> int:
        """Where the name begins in the file."""
        return self.hashes_at + 8 * self.blocks

    @property
    def file_bytes(self) -> int:
        """Of the file itself, the tokens not included."""
        return _round8(self.name_at + self.name_bytes) + _FOOTER.size


def _round8(offset: int) -> int:
    return (offset + 7) // 8 * 8


def write_link(
    folder: Path,
    file: str,
    target: Target,
    tokens: np.ndarray,
    lengths: np.ndarray,
    *,
    text_bytes: int,
    origin: Origin,
    block_bytes: int = BLOCK_BYTES,
    source: str = "main",
) -> ShardRecord:
    """Writes the file of a linked shard whole or not at all.

    Args:
        folder: the data folder.
        file: name of the shard, relative to it; ends with LINK_SUFFIX.
        target: where the tokens lie.
        tokens: (T,) of 2 or 4 bytes each, as they lie there.
        lengths: (N,) tokens of each document, above 0; their sum is T.
        text_bytes: UTF-8 bytes of the text.
        origin: hashes that are kept in the file.
        block_bytes: bytes under one checksum.
        source: name of the corpus that it comes from.

    Raises StorageError for a full disk or a missing permission.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert int(lengths.sum()) == len(tokens) and (len(lengths) == 0 or lengths.min() > 0)
    assert tokens.itemsize in (2, 4) and target.first_byte % tokens.itemsize == 0
    name = target.name.encode()
    layout = LinkLayout(tokens.itemsize, block_bytes, len(tokens), len(lengths), len(name))
    raw = memoryview(np.ascontiguousarray(tokens).tobytes())
    starts = np.cumsum(lengths) - lengths
    hashes = [xxhash.xxh3_64_intdigest(raw[at : at + block_bytes]) for at in range(0, len(raw), block_bytes)]
    content = bytearray(layout.file_bytes)
    counts = (len(tokens), len(lengths), target.first_byte, target.file_bytes)
    _HEADER.pack_into(content, 0, _MAGIC, _VERSION, tokens.itemsize, block_bytes, target.root, *counts, len(name))
    parts = (
        (_HEADER.size, starts[::ANCHOR_DOCUMENTS].astype("<u8").tobytes()),
        (layout.lengths_at, lengths.astype("<u4").tobytes()),
        (layout.hashes_at, np.array(hashes, dtype="<u8").tobytes()),
        (layout.name_at, name),
    )
    for offset, part in parts:
        content[offset : offset + len(part)] = part
    tail = layout.file_bytes - _FOOTER.size
    made_of = [bytes.fromhex(part) for part in (origin.source, origin.tokenizer, origin.config)]
    _FOOTER.pack_into(content, tail, *made_of, 0, _END_MAGIC)
    _FOOTER.pack_into(content, tail, *made_of, _content_hash(memoryview(content)), _END_MAGIC)
    write_atomically(folder / file, bytes(content))
    return ShardRecord(
        file, len(tokens), len(lengths), text_bytes, layout.file_bytes, hash_bytes(bytes(content)), source
    )


def _content_hash(content: memoryview) -> int:
    """Over all but the field of the hash itself and what follows it."""
    return xxhash.xxh3_64_intdigest(content[: len(content) - 16])


class LinkedShard(TokenShard):
    """One linked shard: its index, and a part of its target mapped into memory."""

    def __init__(self, path: Path, roots: Sequence[str], verify: Verify, verified: bytearray | None = None) -> None:
        """Reads our file and maps the tokens.

        Args:
            path: of our file.
            roots: the manifest's.
            verify: when blocks of tokens are checked.
            verified: one byte for each block, 1 where it was checked before by this process.

        Raises:
            DataError: one of the files is missing, cut, changed or damaged, or the name leaves its root.
            StorageError: not readable by this user.
        """
        self.path = path
        index = _read(path)
        self.layout, self.target = _read_frame(path, index)
        *made_of, _, _ = _FOOTER.unpack_from(index, self.layout.file_bytes - _FOOTER.size)
        self.origin = Origin(*(part.hex() for part in made_of))
        self.hash = hash_bytes(index)
        self.target_path = target_path(path, self.target, roots)
        layout = self.layout
        anchors = -(-layout.documents // ANCHOR_DOCUMENTS)
        self._anchors = np.frombuffer(index, "<u8", anchors, _HEADER.size)
        self._lengths = np.frombuffer(index, "<u4", layout.documents, layout.lengths_at)
        self._hashes = np.frombuffer(index, "<u8", layout.blocks, layout.hashes_at)
        self._map, self._view = _map_part(self.target_path, self.target, layout.footer_at)
        self.tokens = np.frombuffer(self._view, f"<u{layout.token_bytes}", layout.tokens)
        self._verify = verify
        self.verified = bytearray(layout.blocks) if verified is None else verified
        if verify == "open":
            self.check(0, layout.footer_at)

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens, a read-only view; its blocks are checked first. Raises DataError for damage."""
        width = self.layout.token_bytes
        self.check(start * width, stop * width)
        return self.tokens[start:stop]

    def damaged(self, what: str) -> DataError:
        """What is told of damage in the target."""
        first = f"tokens from byte {self.target.first_byte:,} on"
        return _changed(self.target_path, f"{first}: {what}")


def target_path(path: Path, target: Target, roots: Sequence[str]) -> Path:
    """Where the tokens of a linked shard lie. Raises DataError where that is outside of the manifest's roots."""
    if target.root >= len(roots):
        raise DataError(
            f"{path}: its tokens lie in root {target.root}, manifest.json lists {len(roots)} roots; "
            "put the list back, or link the files anew"
        )
    try:
        return path_within(Path(roots[target.root]), target.name)
    except ValueError as error:
        raise DataError(f"{path}: names a file outside of its root: {error}; link the files anew") from None


def check_target(path: Path, roots: Sequence[str]) -> None:
    """Finds a linked file that is missing or of another size, from a look at its name and size.

    Raises DataError, StorageError.
    """
    _, target = _read_frame(path, _read(path))
    _target_size(target_path(path, target, roots), target)


def _read(path: Path) -> bytes:
    """The file of ours, which is small; not mapped, so that a linked shard holds one file descriptor as any other."""
    try:
        with told_as_storage_error(path):
            return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: not found; delete the data folder and link the files anew") from None


def _read_frame(path: Path, view: bytes) -> tuple[LinkLayout, Target]:
    if len(view) < _HEADER.size + _FOOTER.size:
        raise damaged_link(path, f"it is cut off at {len(view)} bytes")
    magic, version, width, block_bytes, root, tokens, documents, first, size, name_bytes = _HEADER.unpack_from(view)
    if magic != _MAGIC or version != _VERSION:
        raise damaged_link(path, "it is no linked shard of this version")
    layout = LinkLayout(width, max(block_bytes, 1), tokens, documents, name_bytes)
    if len(view) != layout.file_bytes:
        raise damaged_link(path, f"it has {len(view):,} bytes, its header says {layout.file_bytes:,}")
    *_, content_hash, end_magic = _FOOTER.unpack_from(view, layout.file_bytes - _FOOTER.size)
    if end_magic != _END_MAGIC or content_hash != _content_hash(memoryview(view)):
        raise damaged_link(path, "it does not match its checksum")
    name = view[layout.name_at : layout.name_at + name_bytes].decode()
    return layout, Target(root, name, first, size)


def _map_part(path: Path, target: Target, length: int) -> tuple[mmap.mmap | bytes, memoryview]:
    _target_size(path, target)
    if length == 0:
        return b"", memoryview(b"")
    before = target.first_byte % mmap.ALLOCATIONGRANULARITY
    with told_as_storage_error(path), path.open("rb") as file:
        content = mmap.mmap(file.fileno(), before + length, access=mmap.ACCESS_READ, offset=target.first_byte - before)
    return content, memoryview(content)[before:]


def _target_size(path: Path, target: Target) -> None:
    try:
        with told_as_storage_error(path):
            size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path}: not found, and the data folder links to it; put it back, or name its new folder in the roots of "
            "manifest.json"
        ) from None
    if size != target.file_bytes:
        raise _changed(path, f"it has {size:,} bytes, {target.file_bytes:,} when it was linked")


def _changed(path: Path, what: str) -> DataError:
    return DataError(f"{path}: not the file that was linked: {what}; put the original back, or link the files anew")


def damaged_link(path: Path, what: str) -> DataError:
    """What is told of a damaged file of ours."""
    return DataError(f"{path}: damaged: {what}; delete the data folder and link the files anew, which copies no token")
