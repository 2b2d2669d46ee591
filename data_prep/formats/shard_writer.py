"""Shards of one split, filled with documents that come in batches."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from pretrain.data.linked_shard import LINK_SUFFIX, Target, write_link
from pretrain.data.manifest import ShardRecord, Split
from pretrain.data.token_shards import Origin, write_shard


class SplitWriter:
    """Cuts a stream of documents into shards of at most `shard_tokens`; a longer document makes one alone."""

    def __init__(self, folder: Path, split: Split, token_bytes: np.ndarray, shard_tokens: int) -> None:
        self.records: list[ShardRecord] = []
        self._folder = folder
        self._split: Split = split
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
        """Takes documents: (T,) tokens as they are stored, (N,) lengths above 0. Raises StorageError."""
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
        tokens = np.concatenate(self._tokens)
        text_bytes = int(self._token_bytes[tokens].sum(dtype=np.int64))
        name = f"{self._split}/{self._file:06d}-{self._number:03d}"
        self.records.append(self._write(name, tokens, np.concatenate(self._lengths), text_bytes))
        self._tokens, self._lengths, self._held = [], [], 0
        self._number += 1

    def _write(self, name: str, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int) -> ShardRecord:
        file = f"{name}.tokens"
        return write_shard(self._folder, file, tokens, lengths, text_bytes=text_bytes, origin=self._origin)


class LinkWriter(SplitWriter):
    """Describes shards whose tokens stay where they are."""

    def point_to(self, target: Target) -> None:
        """The next documents are the ones that begin at this place of this file."""
        self._target = target

    def _write(self, name: str, tokens: np.ndarray, lengths: np.ndarray, text_bytes: int) -> ShardRecord:
        target, file = self._target, f"{name}{LINK_SUFFIX}"
        self._target = replace(target, first_byte=target.first_byte + tokens.nbytes)
        return write_link(self._folder, file, target, tokens, lengths, text_bytes=text_bytes, origin=self._origin)
