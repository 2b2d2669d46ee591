"""One token shard: the format, its writer and its reader.

A shard is

    header   64 bytes: magic, version, bytes of a token (2 or 4), block size, number of tokens and of documents, flags
    tokens   raw little-endian uint16 or uint32, the documents one after another
    index    documents, delta-coded: a u64 anchor (the first token) for every 256th document, a u32 length for each;
             pairs have a u32 source length for each as well
    footer   XXH3-64 of every block of what comes before, XXH3-128 of source, tokenizer and config, XXH3-64 of the footer

All of it can be computed from the header, so a cut file is found by its size. The tokens lie where a memory map can hand them
to numpy unchanged; a document is found by bisection over the anchors and a sum over at most 256 lengths, so opening costs
nothing that grows with the number of tokens. The manifest lists the hash of the footer, which stands for the whole file.

Damage: a block is hashed when it is first read and never again by that process (`verify="read"`), which costs one pass at
memory speed over what is really used. Alternatives not taken: a checksum per document (random reads then hash less, but the
footer grows a hundredfold); hashing whole files at the start (minutes on large sets, `verify="open"` does it where wanted);
Arrow or Parquet (a decode and a copy for each read). No torch here: preparation and the launcher read this module.
"""

import mmap
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Literal

import numpy as np
import xxhash

from pretrain.data.shard_table import ShardRecord
from pretrain.errors import DataError
from pretrain.files import hash_bytes, told_as_storage_error, write_atomically

Verify = Literal["read", "open", "never"]
"""When blocks are held against their hashes: at the first read of each, all of them at the start, or not at all."""

BLOCK_BYTES = 1 << 20
ANCHOR_DOCUMENTS = 256

_HEADER = Struct("<8sIIQQQQ16x")
_MAGIC, _END_MAGIC, _VERSION = b"TOKSHARD", b"DRAHSKOT", 1
_PAIRS = 1
_FOOTER_TAIL = Struct("<16s16s16sQ8s")


# --- layout and writer ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Origin:
    """Where a shard comes from, as hashes (32 hexadecimal digits each)."""

    source: str
    tokenizer: str
    config: str


@dataclass(frozen=True)
class _Layout:
    """Byte offsets within a shard; all derive from the header."""

    token_bytes: int
    block_bytes: int
    tokens: int
    documents: int
    pairs: bool

    @property
    def anchors_at(self) -> int:
        return _round8(_HEADER.size + self.tokens * self.token_bytes)

    @property
    def lengths_at(self) -> int:
        return self.anchors_at + 8 * -(-self.documents // ANCHOR_DOCUMENTS)

    @property
    def sources_at(self) -> int:
        return _round8(self.lengths_at + 4 * self.documents)

    @property
    def footer_at(self) -> int:
        return _round8(self.sources_at + (4 * self.documents if self.pairs else 0))

    @property
    def blocks(self) -> int:
        return -(-self.footer_at // self.block_bytes)

    @property
    def file_bytes(self) -> int:
        return self.footer_at + 8 * self.blocks + _FOOTER_TAIL.size


def _round8(offset: int) -> int:
    return (offset + 7) // 8 * 8


def write_shard(
    folder: Path,
    file: str,
    tokens: np.ndarray,
    lengths: np.ndarray,
    *,
    text_bytes: int,
    origin: Origin,
    source_lengths: np.ndarray | None = None,
    block_bytes: int = BLOCK_BYTES,
    source: str = "main",
) -> ShardRecord:
    """Writes a shard whole or not at all.

    Args:
        folder: the data folder.
        file: name of the shard, relative to it.
        tokens: (T,) uint16 or uint32, the documents one after another.
        lengths: (N,) tokens of each document; their sum is T.
        text_bytes: UTF-8 bytes of the text.
        origin: hashes that are kept in the footer.
        source_lengths: (N,) tokens of the source side of each pair, without <|target|>; None for plain documents.
        block_bytes: bytes under one checksum.
        source: name of the corpus that it comes from.

    Raises StorageError for a full disk or a missing permission.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    assert tokens.dtype in (np.dtype("<u2"), np.dtype("<u4")) and int(lengths.sum()) == len(tokens)
    assert len(lengths) == 0 or (lengths.min() > 0 and lengths.max() < 1 << 32)
    pairs = source_lengths is not None
    layout = _Layout(tokens.dtype.itemsize, block_bytes, len(tokens), len(lengths), pairs)
    content = bytearray(layout.file_bytes)
    flags = _PAIRS if pairs else 0
    _HEADER.pack_into(
        content, 0, _MAGIC, _VERSION, layout.token_bytes, block_bytes, layout.tokens, layout.documents, flags
    )
    starts = np.cumsum(lengths) - lengths
    _put(content, _HEADER.size, tokens)
    _put(content, layout.anchors_at, starts[::ANCHOR_DOCUMENTS].astype("<u8"))
    _put(content, layout.lengths_at, lengths.astype("<u4"))
    if source_lengths is not None:
        _put(content, layout.sources_at, np.asarray(source_lengths).astype("<u4"))
    view = memoryview(content)
    hashes = [_block_hash(view, layout, block) for block in range(layout.blocks)]
    _put(content, layout.footer_at, np.array(hashes, dtype="<u8"))
    parts = [bytes.fromhex(part) for part in (origin.source, origin.tokenizer, origin.config)]
    tail = layout.file_bytes - _FOOTER_TAIL.size
    _FOOTER_TAIL.pack_into(content, tail, *parts, 0, _END_MAGIC)
    _FOOTER_TAIL.pack_into(content, tail, *parts, _footer_hash(view, layout), _END_MAGIC)
    write_atomically(folder / file, content)
    footer = hash_bytes(view[layout.footer_at :])
    return ShardRecord(file, layout.tokens, layout.documents, text_bytes, layout.file_bytes, footer, source)


def _put(content: bytearray, offset: int, values: np.ndarray) -> None:
    np.frombuffer(content, values.dtype, len(values), offset)[:] = values


def _block_hash(content: memoryview, layout: _Layout, block: int) -> int:
    start = block * layout.block_bytes
    return xxhash.xxh3_64_intdigest(content[start : min(start + layout.block_bytes, layout.footer_at)])


def _footer_hash(content: memoryview, layout: _Layout) -> int:
    """Over the block hashes and the origin; the field of the hash itself comes after them."""
    return xxhash.xxh3_64_intdigest(content[layout.footer_at : layout.file_bytes - 16])


# --- reader -----------------------------------------------------------------------------------------------------------


class TokenShard:
    """One shard, mapped into memory."""

    def __init__(self, path: Path, verify: Verify, verified: bytearray | None = None) -> None:
        """Maps a shard and checks its frame.

        Args:
            path: of the file.
            verify: when blocks are checked.
            verified: one byte for each block, 1 where it was checked before by this process.

        Raises:
            DataError: missing, cut, of another format, or damaged.
            StorageError: not readable by this user.
        """
        self.path = path
        self._map, self._view = _map(path)
        self.layout = self._read_layout()
        self._hashes = self._array("<u8", self.layout.footer_at, self.layout.blocks)
        tail = self.layout.file_bytes - _FOOTER_TAIL.size
        source, tokenizer, config, footer_hash, magic = _FOOTER_TAIL.unpack_from(self._view, tail)
        if magic != _END_MAGIC or footer_hash != _footer_hash(self._view, self.layout):
            raise damaged_shard(path, "the footer does not match its checksum")
        self.origin = Origin(source.hex(), tokenizer.hex(), config.hex())
        self.hash = hash_bytes(self._view[self.layout.footer_at :])
        """As the manifest lists it."""
        self._verify = verify
        self.verified = bytearray(self.layout.blocks) if verified is None else verified
        self.all_verified = verify == "never" or self.verified.find(0) < 0
        """Nothing is left to be checked."""
        self.tokens = self._array(f"<u{self.layout.token_bytes}", _HEADER.size, self.layout.tokens)
        """(T,) a view of the file; reading it directly checks nothing."""
        self._anchors = self._array("<u8", self.layout.anchors_at, -(-self.layout.documents // ANCHOR_DOCUMENTS))
        self._lengths = self._array("<u4", self.layout.lengths_at, self.layout.documents)
        if verify == "open":
            self.check(0, self.layout.footer_at)
        else:
            self.check(0, _HEADER.size)
            self.check(self.layout.anchors_at, self.layout.footer_at)

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens, a read-only view; its blocks are checked first. Raises DataError for damage."""
        width = self.layout.token_bytes
        self.check(_HEADER.size + start * width, _HEADER.size + stop * width)
        return self.tokens[start:stop]

    def copy(self, start: int, stop: int, out: np.ndarray) -> None:
        """`read` into the first elements of `out`."""
        if not self.all_verified:
            width = self.layout.token_bytes
            self.check(_HEADER.size + start * width, _HEADER.size + stop * width)
        out[: stop - start] = self.tokens[start:stop]

    def lengths(self) -> np.ndarray:
        """(N,) tokens of each document."""
        return self._lengths

    def source_lengths(self) -> np.ndarray:
        """(N,) tokens of the source side of each pair. Raises DataError where the shard holds plain documents."""
        if not self.layout.pairs:
            raise DataError(f"{self.path}: holds plain documents, no pairs; objective seq2seq needs pairs")
        return self._array("<u4", self.layout.sources_at, self.layout.documents)

    def document_bounds(self, document: int) -> tuple[int, int]:
        """First token of a document and of the next one."""
        group = document // ANCHOR_DOCUMENTS
        within = self._lengths[group * ANCHOR_DOCUMENTS : document + 1]
        stop = int(self._anchors[group]) + int(within.sum(dtype=np.int64))
        return stop - int(within[-1]), stop

    def document_at(self, token: int) -> int:
        """The document that a token belongs to."""
        group = int(self._anchors.searchsorted(token, side="right")) - 1
        ends = int(self._anchors[group]) + np.cumsum(
            self._lengths[group * ANCHOR_DOCUMENTS :][:ANCHOR_DOCUMENTS], dtype=np.int64
        )
        return group * ANCHOR_DOCUMENTS + int(ends.searchsorted(token, side="right"))

    def check(self, start: int, stop: int) -> None:
        """Holds the blocks of a range of bytes against their hashes, those that were not before. Raises DataError."""
        if self._verify == "never" or stop <= start:
            return
        size = self.layout.block_bytes
        first, last = start // size, (stop - 1) // size
        if self.verified.find(0, first, last + 1) < 0:
            return
        for block in range(first, last + 1):
            if self.verified[block]:
                continue
            if _block_hash(self._view, self.layout, block) != int(self._hashes[block]):
                raise self.damaged(f"block {block} (bytes {block * size:,} on) does not match its checksum")
            self.verified[block] = 1
        self.all_verified = self.verified.find(0) < 0

    def damaged(self, what: str) -> DataError:
        """What is told of a block that is damaged."""
        return damaged_shard(self.path, what)

    def _read_layout(self) -> _Layout:
        size = len(self._view)
        if size < _HEADER.size:
            raise damaged_shard(self.path, f"it is cut off at {size} bytes")
        magic, version, token_bytes, block_bytes, tokens, documents, flags = _HEADER.unpack_from(self._view, 0)
        if magic != _MAGIC or version != _VERSION:
            raise DataError(
                f"{self.path}: no token shard of this version: it does not begin like one; if `pretrain prepare` made this file, "
                "delete it and run that again, it rebuilds this shard alone"
            )
        if token_bytes not in (2, 4) or block_bytes < 1 or max(tokens, documents) > size or flags > _PAIRS:
            raise damaged_shard(self.path, "its header is not valid")
        layout = _Layout(token_bytes, block_bytes, tokens, documents, bool(flags & _PAIRS))
        if size != layout.file_bytes:
            raise damaged_shard(self.path, f"it has {size:,} bytes, its header says {layout.file_bytes:,}")
        return layout

    def _array(self, dtype: str, offset: int, count: int) -> np.ndarray:
        return np.frombuffer(self._map, dtype, count, offset)


def _map(path: Path) -> tuple[mmap.mmap | bytes, memoryview]:
    try:
        with told_as_storage_error(path), path.open("rb") as file:
            empty = file.seek(0, 2) == 0
            content = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise missing_shard(path) from None
    return content, memoryview(content)


class MissingShard(DataError):
    """A shard that is not there."""


def missing_shard(path: Path) -> MissingShard:
    """What is told of a shard that is not there."""
    return MissingShard(f"{path}: not found; `pretrain prepare` with the same config rebuilds this shard alone")


def damaged_shard(path: Path, what: str) -> DataError:
    """What is told of a damaged shard."""
    return DataError(
        f"{path}: damaged token shard: {what}; delete this file and run `pretrain prepare` again, it rebuilds this shard alone"
    )
