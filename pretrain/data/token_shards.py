"""Token shards: the format of prepared data, its writer and its reader.

A data folder holds `manifest.json`, `tokenizer.json`, `token_bytes.bin` and, for each split, shard files. A shard is

    header   64 bytes: magic, version, bytes of a token (2 or 4), block size, number of tokens and of documents, flags
    tokens   raw little-endian uint16 or uint32, the documents one after another
    index    documents, delta-coded: a u64 anchor (the first token) for every 256th document, a u32 length for each;
             pairs have a u32 source length for each as well
    footer   XXH3-64 of every block of what comes before, XXH3-128 of source, tokenizer and config, XXH3-64 of the footer

All of it can be computed from the header, so a cut file is found by its size. The tokens lie where a memory map can hand them
to numpy unchanged; a document is found by bisection over the anchors and a sum over at most 256 lengths, so opening costs
nothing that grows with the number of tokens.

Damage: a block is hashed when it is first read and never again by that process (`verify="read"`), which costs one pass at
memory speed over what is really used. Alternatives not taken: a checksum per document (random reads then hash less, but the
footer grows a hundredfold); hashing whole files at the start (minutes on large sets, `verify="open"` does it where wanted);
Arrow or Parquet (a decode and a copy for each read). No torch here: preparation and the launcher read this module.
"""

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Literal

import numpy as np
import xxhash

from pretrain.data.manifest import END_OF_TEXT as END_OF_TEXT
from pretrain.data.manifest import MANIFEST_FORMAT as MANIFEST_FORMAT
from pretrain.data.manifest import MANIFEST_NAME as MANIFEST_NAME
from pretrain.data.manifest import PADDING as PADDING
from pretrain.data.manifest import SPLITS as SPLITS
from pretrain.data.manifest import TARGET as TARGET
from pretrain.data.manifest import TOKEN_BYTES_NAME as TOKEN_BYTES_NAME
from pretrain.data.manifest import TOKENIZER_NAME as TOKENIZER_NAME
from pretrain.data.manifest import Manifest as Manifest
from pretrain.data.manifest import ShardRecord as ShardRecord
from pretrain.data.manifest import SpecialTokens as SpecialTokens
from pretrain.data.manifest import Split as Split
from pretrain.data.manifest import SplitRecord as SplitRecord
from pretrain.data.manifest import read_manifest as read_manifest
from pretrain.data.manifest import read_token_bytes as read_token_bytes
from pretrain.data.manifest import token_dtype as token_dtype
from pretrain.errors import DataError
from pretrain.files import hash_bytes, path_within, told_as_storage_error, write_atomically

Verify = Literal["read", "open", "never"]
"""When blocks are held against their hashes: at the first read of each, all of them at the start, or not at all."""

BLOCK_BYTES = 1 << 20
ANCHOR_DOCUMENTS = 256
OPEN_SHARDS = 256
"""Shards that a reader keeps mapped; each map holds a file descriptor, and 1,024 are a usual limit."""

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
    write_atomically(folder / file, bytes(content))
    return ShardRecord(file, layout.tokens, layout.documents, text_bytes, layout.file_bytes, hash_bytes(view))


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
        self._verify = verify
        self.verified = bytearray(self.layout.blocks) if verified is None else verified
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
                raise damaged_shard(self.path, f"block {block} (bytes {block * size:,} on) does not match its checksum")
            self.verified[block] = 1

    def _read_layout(self) -> _Layout:
        size = len(self._view)
        if size < _HEADER.size:
            raise damaged_shard(self.path, f"it is cut off at {size} bytes")
        magic, version, token_bytes, block_bytes, tokens, documents, flags = _HEADER.unpack_from(self._view, 0)
        if magic != _MAGIC or version != _VERSION:
            raise damaged_shard(self.path, "it is no token shard of this version")
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


def missing_shard(path: Path) -> DataError:
    """What is told of a shard that is not there."""
    return DataError(f"{path}: not found; `pretrain prepare` with the same config rebuilds this shard alone")


def damaged_shard(path: Path, what: str) -> DataError:
    """What is told of a damaged shard."""
    return DataError(
        f"{path}: damaged token shard: {what}; delete this file and run `pretrain prepare` again, it rebuilds this shard alone"
    )


class TokenShards:
    """A split as one stream of tokens; shards are mapped when they are first needed.

    Not safe for several threads at once: the prefetch thread is its one reader.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: Split, verify: Verify) -> None:
        self.folder = folder
        self.manifest = manifest
        self.split: Split = split
        self._verify: Verify = verify
        self._records: Sequence[ShardRecord] = manifest.splits[split].shards
        # Prefix sums as int64: 10T tokens and more than 2^32 documents fit.
        self._token_starts = np.cumsum([0, *(shard.tokens for shard in self._records)], dtype=np.int64)
        self._document_starts = np.cumsum([0, *(shard.documents for shard in self._records)], dtype=np.int64)
        self._open: OrderedDict[int, TokenShard] = OrderedDict()
        self._verified: dict[int, bytearray] = {}

    @classmethod
    def open(cls, folder: str | Path, split: Split, verify: Verify = "read") -> "TokenShards":
        """Opens a split of a data folder. Raises DataError, StorageError."""
        shards = cls(Path(folder), read_manifest(folder), split, verify)
        if verify == "open":
            shards.check_all()
        return shards

    @property
    def num_tokens(self) -> int:
        """Tokens of the split."""
        return int(self._token_starts[-1])

    @property
    def num_documents(self) -> int:
        """Documents of the split."""
        return int(self._document_starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens of the stream; a view where they lie in one shard. Raises DataError for damage."""
        assert 0 <= start <= stop <= self.num_tokens, f"tokens {start}:{stop} of {self.num_tokens}"
        index = self._shard_of_token(start)
        offset = int(self._token_starts[index])
        if stop <= self._token_starts[index + 1]:
            return self.shard(index).read(start - offset, stop - offset)
        parts = []
        while start < stop:
            offset, end = int(self._token_starts[index]), int(self._token_starts[index + 1])
            parts.append(self.shard(index).read(start - offset, min(stop, end) - offset))
            start, index = min(stop, end), index + 1
        return np.concatenate(parts)

    def read_windows(self, starts: np.ndarray, length: int) -> Iterator[np.ndarray]:
        """`length` tokens from each of the starts on (fewer at the end of the stream), as `read` gives them."""
        indices = self._token_starts.searchsorted(starts, side="right") - 1
        offsets, ends = self._token_starts[indices].tolist(), self._token_starts[indices + 1].tolist()
        total = self.num_tokens
        for start, index, offset, end in zip(starts.tolist(), indices.tolist(), offsets, ends, strict=True):
            stop = min(start + length, total)
            if stop <= end:
                yield self.shard(index).read(start - offset, stop - offset)
            else:
                yield self.read(start, stop)

    def document_at(self, token: int) -> int:
        """The document of the stream that a token belongs to."""
        assert 0 <= token < self.num_tokens, f"token {token} of {self.num_tokens}"
        index = self._shard_of_token(token)
        return int(self._document_starts[index]) + self.shard(index).document_at(token - int(self._token_starts[index]))

    def document_bounds(self, document: int) -> tuple[int, int]:
        """First token of a document of the stream, and of the next one."""
        assert 0 <= document < self.num_documents, f"document {document} of {self.num_documents}"
        index = int(np.searchsorted(self._document_starts, document, side="right")) - 1
        start, stop = self.shard(index).document_bounds(document - int(self._document_starts[index]))
        offset = int(self._token_starts[index])
        return start + offset, stop + offset

    def document(self, document: int) -> np.ndarray:
        """Tokens of a document. Raises DataError for damage."""
        return self.read(*self.document_bounds(document))

    def lengths(self) -> np.ndarray:
        """(N,) int64 tokens of every document; O(N) memory."""
        return self._gather(TokenShard.lengths)

    def source_lengths(self) -> np.ndarray:
        """(N,) int64 tokens of every pair's source. Raises DataError where the data are plain documents."""
        return self._gather(TokenShard.source_lengths)

    def check_all(self) -> None:
        """Reads every shard wholly and holds it against its checksums. Raises DataError for the first damage."""
        for index in range(len(self._records)):
            shard = self.shard(index)
            shard.check(0, shard.layout.footer_at)

    def shard(self, index: int) -> TokenShard:
        """A shard by its place in the split."""
        shard = self._open.get(index)
        if shard is None:
            shard = self._open[index] = self._map_shard(index)
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        elif len(self._records) > OPEN_SHARDS:
            self._open.move_to_end(index)
        return shard

    def _map_shard(self, index: int) -> TokenShard:
        record = self._records[index]
        shard = TokenShard(path_within(self.folder, record.file), self._verify, self._verified.get(index))
        self._verified[index] = shard.verified
        if shard.origin.tokenizer != self.manifest.tokenizer_hash:
            raise DataError(
                f"{shard.path}: made with tokenizer {shard.origin.tokenizer}, the manifest names "
                f"{self.manifest.tokenizer_hash}; delete the data folder and run `pretrain prepare` again"
            )
        found = (shard.layout.tokens, shard.layout.documents)
        if found != (record.tokens, record.documents):
            raise damaged_shard(
                shard.path,
                f"{found[0]} tokens, {found[1]} documents where the manifest lists {record.tokens}, {record.documents}",
            )
        return shard

    def _shard_of_token(self, token: int) -> int:
        return min(int(np.searchsorted(self._token_starts, token, side="right")) - 1, len(self._records) - 1)

    def _gather(self, part: Callable[[TokenShard], np.ndarray]) -> np.ndarray:
        parts = (part(self.shard(index)).astype(np.int64) for index in range(len(self._records)))
        return np.concatenate([np.empty(0, np.int64), *parts])
