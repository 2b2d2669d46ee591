"""Shards of one split of a range, written as they fill up.

The cost beside that of the tokenizer is one copy of the tokens into the stored type and one into the file: a batch of documents
is one call of `numpy.concatenate`, which narrows as it copies. An array, a copy and a record for each document took as long as
the fastest engine does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from data_prep.sieve import Read
from data_prep.tokenize import Encoder
from pretrain.data.manifest import MAIN_SOURCE
from pretrain.data.token_shards import Origin, ShardRecord, Split, token_dtype, write_shard


@dataclass(frozen=True)
class Target:
    """Which shards, and where."""

    folder: Path
    split: Split
    source: str
    index: int
    """Of the range within its source."""
    shard_tokens: int
    """Most tokens in a shard; a single longer document still makes one."""
    pairs: bool

    def file(self, number: int) -> str:
        """Name of the n-th shard, relative to the data folder."""
        within = "" if self.source == MAIN_SOURCE else f"{self.source}/"
        return f"{self.split}/{within}{self.index:06d}-{number:03d}.tokens"


class ShardWriter:
    """Takes batches of documents, writes shards."""

    def __init__(self, target: Target, encoder: Encoder, origin: Callable[[], Origin]) -> None:
        """Writes nothing yet.

        Args:
            target: the shards.
            encoder: makes tokens of text.
            origin: asked when a shard is written.
        """
        self._target, self._encoder, self._origin = target, encoder, origin
        self._dtype = token_dtype(encoder.vocab_size)
        special = encoder.special
        self._end = np.array([special.end_of_text], np.uint32)
        self._middle = np.array([special.target], np.uint32)
        self._records: list[ShardRecord] = []
        self._clear()

    def _clear(self) -> None:
        self._tokens: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._sources: list[np.ndarray] = []
        self._size = self._text_bytes = 0

    def add(self, batch: Sequence[Read]) -> None:
        """Appends documents. Raises DataError, StorageError."""
        documents = [read.document for read in batch]
        ids = self._encoder.encode(
            [side for document in documents for side in document.sides],
            [side for document in documents for side in document.utf8],
        )
        side_lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        if self._target.pairs:
            sources, lengths = side_lengths[0::2], side_lengths[0::2] + side_lengths[1::2] + 2
            ends = (self._middle, self._end) * len(batch)
        else:
            sources, lengths = side_lengths[:0], side_lengths + 1
            ends = (self._end,) * len(batch)
        tokens = np.empty(int(lengths.sum()), self._dtype)
        pieces = list(chain.from_iterable(zip(ids, ends, strict=True)))
        np.concatenate(pieces, out=tokens, casting="unsafe")
        self._append(tokens, lengths, sources, np.fromiter((read.size for read in batch), np.int64, len(batch)))

    def _append(self, tokens: np.ndarray, lengths: np.ndarray, sources: np.ndarray, sizes: np.ndarray) -> None:
        """Puts documents into the shard at hand and the ones after it."""
        stops = np.concatenate([[0], np.cumsum(lengths)])
        first = 0
        while first < len(lengths):
            room = self._target.shard_tokens - self._size
            last = int(np.searchsorted(stops, stops[first] + room, side="right")) - 1
            if last <= first and self._size:
                self._flush()
                continue
            last = max(last, first + 1)
            self._tokens.append(tokens[stops[first] : stops[last]])
            self._lengths.append(lengths[first:last])
            self._sources.append(sources[first:last])
            self._size += int(stops[last] - stops[first])
            self._text_bytes += int(sizes[first:last].sum())
            first = last

    def _flush(self) -> None:
        tokens = np.concatenate(self._tokens)
        lengths = np.concatenate(self._lengths)
        sources = np.concatenate(self._sources) if self._target.pairs else None
        text_bytes = self._text_bytes
        self._clear()
        record = write_shard(
            self._target.folder,
            self._target.file(len(self._records)),
            tokens,
            lengths,
            text_bytes=text_bytes,
            origin=self._origin(),
            source_lengths=sources,
            source=self._target.source,
        )
        self._records.append(record)

    def close(self) -> list[ShardRecord]:
        """Writes what is left; returns all shards, in order."""
        if self._size:
            self._flush()
        return self._records

    def take_back(self) -> None:
        """Deletes what was written."""
        for record in self._records:
            (self._target.folder / record.file).unlink(missing_ok=True)
