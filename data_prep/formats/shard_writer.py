"""Shards of one split, filled with documents that come in batches."""

from pathlib import Path

import numpy as np

from pretrain.data.manifest import ShardRecord, Split
from pretrain.data.token_shards import Origin, write_shard


class SplitWriter:
    """Cuts a stream of documents into shards of at most `shard_tokens`; a longer document makes one alone."""

    def __init__(self, folder: Path, split: Split, dtype: np.dtype, token_bytes: np.ndarray, shard_tokens: int) -> None:
        self.records: list[ShardRecord] = []
        self._folder = folder
        self._split: Split = split
        self._dtype = dtype
        self._token_bytes = token_bytes
        self._shard_tokens = shard_tokens
        self._tokens: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._held = 0

    def begin(self, file: int, origin: Origin) -> None:
        """The next documents are of another file, which begins new shards."""
        assert not self._tokens, "flush comes first"
        self._file, self._origin, self._number = file, origin, 0

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Takes documents: (T,) tokens of the split's type, (N,) lengths above 0. Raises StorageError."""
        while len(lengths):
            ends = np.cumsum(lengths)
            count = int(ends.searchsorted(self._shard_tokens - self._held, side="right"))
            if count == 0 and not self._tokens:
                count = 1
            if count:
                stop = int(ends[count - 1])
                self._tokens.append(tokens[:stop])
                self._lengths.append(lengths[:count])
                self._held += stop
                tokens, lengths = tokens[stop:], lengths[count:]
            if len(lengths):
                self.flush()

    def flush(self) -> None:
        """Writes what is held as a shard. Raises StorageError."""
        if not self._tokens:
            return
        tokens = np.concatenate(self._tokens).astype(self._dtype, copy=False)
        record = write_shard(
            self._folder,
            f"{self._split}/{self._file:06d}-{self._number:03d}.tokens",
            tokens,
            np.concatenate(self._lengths),
            text_bytes=int(self._token_bytes[tokens].sum(dtype=np.int64)),
            origin=self._origin,
        )
        self.records.append(record)
        self._tokens, self._lengths, self._held = [], [], 0
        self._number += 1
