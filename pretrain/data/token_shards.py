"""A split of a data folder as one stream of tokens, and what of the format the other rooms need.

A data folder holds `manifest.json` and its table of shards, `tokenizer.json`, `token_bytes.bin` and, for each split, shard files
(`shard_file`). A stream is all shards of a split, or those of one source. No torch here: preparation and the launcher read this
module.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from pretrain.data.linked_shard import LINK_SUFFIX, LinkedShard
from pretrain.data.local_shards import is_cached, wait_for_shard
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
from pretrain.data.manifest import write_manifest as write_manifest
from pretrain.data.shard_file import MissingShard as MissingShard
from pretrain.data.shard_file import Origin as Origin
from pretrain.data.shard_file import TokenShard as TokenShard
from pretrain.data.shard_file import Verify as Verify
from pretrain.data.shard_file import damaged_shard as damaged_shard
from pretrain.data.shard_file import missing_shard as missing_shard
from pretrain.data.shard_file import write_shard as write_shard
from pretrain.errors import DataError
from pretrain.files import path_within

CACHE_ATTEMPTS = 20
OPEN_SHARDS = 256
"""Shards that a reader keeps mapped; each map holds a file descriptor, and 1,024 are a usual limit."""


def shard_path(folder: Path, record: ShardRecord) -> Path:
    """Where a shard lies. Raises DataError where its name leaves the folder."""
    try:
        return path_within(folder, record.file)
    except ValueError as error:
        raise DataError(
            f"{folder}: its manifest lists a shard outside of it: {error}; prepare the folder anew"
        ) from None


class TokenShards:
    """A split as one stream of tokens; shards are mapped when they are first needed.

    Not safe for several threads at once: the prefetch thread is its one reader.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, split: Split, verify: Verify, source: str | None = None
    ) -> None:
        """A stream of a split.

        Args:
            folder: the data folder.
            manifest: of it.
            split: which part.
            verify: when blocks are checked.
            source: one corpus of the folder; None: all of them, one after another.
        """
        self.folder = folder
        self.manifest = manifest
        self.split: Split = split
        self._verify: Verify = verify
        self._source = source
        self._records = manifest.splits[split] if source is None else manifest.source(split, source)
        # Prefix sums as int64: 10T tokens and more than 2^32 documents fit.
        self._token_starts = np.concatenate([[0], np.cumsum(self._records.column("tokens"))])
        self._document_starts = np.concatenate([[0], np.cumsum(self._records.column("documents"))])
        self._open: OrderedDict[int, TokenShard] = OrderedDict()
        self._verified: dict[int, bytearray] = {}

    @classmethod
    def open(
        cls, folder: str | Path, split: Split, verify: Verify = "read", source: str | None = None
    ) -> "TokenShards":
        """Opens a split of a data folder, or one source of it. Raises DataError, StorageError."""
        shards = cls(Path(folder), read_manifest(folder), split, verify, source)
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

    def gather(self, starts: np.ndarray, out: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Copies the tokens from each of the (N,) starts on into the rows of `out` (M, L) that `rows` (N,) names.

        Returns (N,) how many each got: L, or fewer at the end of the stream. Raises DataError for damage.
        """
        assert len(starts) == 0 or 0 <= starts.min() <= starts.max() < self.num_tokens, "windows beyond the stream"
        counts = np.minimum(self.num_tokens - starts, out.shape[1])
        indices = self._token_starts.searchsorted(starts, side="right") - 1
        firsts, within = starts - self._token_starts[indices], self._token_starts[indices + 1] - starts
        whole = (counts <= within).tolist()
        lasts = (firsts + counts).tolist()
        shard = self.shard
        for row, index, first, last, is_whole in zip(
            rows.tolist(), indices.tolist(), firsts.tolist(), lasts, whole, strict=True
        ):
            if is_whole:
                shard(index).copy(first, last, out[row])
            else:
                start = int(self._token_starts[index])
                out[row, : last - first] = self.read(start + first, start + last)
        return counts

    def grown(self, manifest: Manifest) -> "TokenShards":
        """The stream after its source got more shards behind those that it had; what is open and checked stays so."""
        grown = TokenShards(self.folder, manifest, self.split, self._verify, self._source)
        grown._open, grown._verified = self._open, self._verified
        return grown

    def document_at(self, token: int) -> int:
        """The document of the stream that a token belongs to."""
        assert 0 <= token < self.num_tokens, f"token {token} of {self.num_tokens}"
        index = self._shard_of_token(token)
        return int(self._document_starts[index]) + self.shard(index).document_at(token - int(self._token_starts[index]))

    def document_bounds(self, document: int) -> tuple[int, int]:
        """First token of a document of the stream, and of the next one."""
        assert 0 <= document < self.num_documents, f"document {document} of {self.num_documents}"
        index, within = self.place_of_document(document)
        start, stop = self.shard(index).document_bounds(within)
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

    @property
    def num_shards(self) -> int:
        """Shards of the stream."""
        return len(self._records)

    def file(self, index: int) -> str:
        """Name of a shard's file, relative to the folder."""
        return self._records.shard(index).file

    def file_bytes(self, index: int) -> int:
        """Bytes of a shard's file."""
        return self._records.shard(index).file_bytes

    def place_of_document(self, document: int) -> tuple[int, int]:
        """The shard of a document of the stream, and its number there."""
        index = int(np.searchsorted(self._document_starts, document, side="right")) - 1
        return index, document - int(self._document_starts[index])

    def check_shard(self, index: int) -> None:
        """Reads a shard wholly and holds it against its checksums. Raises DataError for damage."""
        shard = self.shard(index)
        shard.check(0, shard.layout.footer_at)

    def check_all(self) -> None:
        """Reads every shard wholly and holds it against its checksums. Raises DataError for the first damage."""
        for index in range(self.num_shards):
            self.check_shard(index)

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

    def let_go(self, index: int) -> None:
        """Unmaps a shard, for a pass over all of them: a mapped page that was read counts as memory of the process."""
        self._open.pop(index, None)

    def _map_shard(self, index: int) -> TokenShard:
        record = self._records.shard(index)
        shard = self._present(record, self._verified.get(index))
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
        if shard.hash != record.hash:
            raise damaged_shard(shard.path, "it is not the shard that the manifest lists (another hash)")
        return shard

    def _present(self, record: ShardRecord, verified: bytearray | None) -> TokenShard:
        """A shard that is there, that is linked, or that the agent of this node brings."""
        path = shard_path(self.folder, record)
        if record.file.endswith(LINK_SUFFIX):
            return LinkedShard(path, self.manifest.roots, self._verify, verified)
        if not is_cached(self.folder):
            return TokenShard(path, self._verify, verified)
        for _ in range(CACHE_ATTEMPTS):
            wait_for_shard(self.folder, record.file)
            with suppress(MissingShard):  # it may go between two looks at it
                return TokenShard(path, self._verify, verified)
        raise DataError(f"{path}: the cache is too small for the shards that are read at once; raise data.cache.gib")

    def _shard_of_token(self, token: int) -> int:
        return min(int(np.searchsorted(self._token_starts, token, side="right")) - 1, len(self._records) - 1)

    def _gather(self, part: Callable[[TokenShard], np.ndarray]) -> np.ndarray:
        parts = (part(self.shard(index)).astype(np.int64) for index in range(len(self._records)))
        return np.concatenate([np.empty(0, np.int64), *parts])
