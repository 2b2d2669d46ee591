"""What lies in a data folder or in one shard, as plain values: counts, lengths of documents, random documents, damage.

Reads what it shows: of a large folder the lengths come from some of the shards, evenly spread, and that is said.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.data.folder_check import check_tokenizer
from pretrain.data.manifest import MANIFEST_NAME, SPLITS, Manifest, Split, read_token_bytes
from pretrain.data.shard_file import TokenShard
from pretrain.data.token_shards import TokenShards
from pretrain.errors import DataError

LENGTH_SHARDS = 64
"""Shards whose lengths of documents are read; each costs four bytes a document."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of documents, counted by powers of two."""

    counts: tuple[int, ...]
    """Documents of 2^k to 2^(k+1) - 1 tokens, at place k."""
    documents: int
    tokens: int
    shortest: int
    median: int
    longest: int
    shards_read: int
    shards: int

    @classmethod
    def of(cls, lengths: Sequence[np.ndarray], shards: int) -> "Lengths":
        """Of (N,) lengths shard by shard, some of `shards`."""
        joined = np.concatenate([np.zeros(0, np.int64), *lengths])
        counts = np.bincount(np.log2(joined).astype(np.int64)) if len(joined) else np.zeros(0, np.int64)
        shortest, median, longest = (
            (int(joined.min()), int(np.median(joined)), int(joined.max())) if len(joined) else (0, 0, 0)
        )
        return cls(
            tuple(counts.tolist()), len(joined), int(joined.sum()), shortest, median, longest, len(lengths), shards
        )


@dataclass(frozen=True)
class DrawnDocument:
    """A document that was drawn at random."""

    source: str
    file: str
    number: int
    """Of the document in its shard, from 0."""
    tokens: np.ndarray
    """(N,) with special ones."""


def data_folder_of(path: Path) -> Path | None:
    """The data folder that a shard lies in; None where it is in none."""
    return next((folder for folder in path.absolute().parents if (folder / MANIFEST_NAME).is_file()), None)


def lengths_of(folder: Path, manifest: Manifest, split: Split, source: str) -> Lengths:
    """Lengths of the documents of a source. Raises DataError for damage."""
    stream = TokenShards(folder, manifest, split, "read", source)
    count = stream.num_shards
    chosen = range(count) if count <= LENGTH_SHARDS else [at * count // LENGTH_SHARDS for at in range(LENGTH_SHARDS)]
    return Lengths.of([stream.shard(index).lengths().astype(np.int64) for index in chosen], count)


def draw_documents(
    folder: Path, manifest: Manifest, split: Split, source: str, count: int, seed: int
) -> list[DrawnDocument]:
    """Random documents of a source, each as likely as any other. Raises DataError for damage."""
    stream = TokenShards(folder, manifest, split, "read", source)
    chosen = random.Random(f"{seed}/{split}/{source}")
    numbers = sorted(chosen.sample(range(stream.num_documents), min(count, stream.num_documents)))
    found = []
    for number in numbers:
        index, within = stream.place_of_document(number)
        found.append(DrawnDocument(source, stream.file(index), within, stream.document(number)))
    return found


def draw_from_shard(shard: TokenShard, count: int, seed: int) -> list[DrawnDocument]:
    """Random documents of one shard. Raises DataError for damage."""
    documents = shard.layout.documents
    numbers = sorted(random.Random(f"{seed}").sample(range(documents), min(count, documents)))
    return [
        DrawnDocument("", shard.path.name, number, shard.read(*shard.document_bounds(number))) for number in numbers
    ]


def damage_of(folder: Path, manifest: Manifest) -> Iterator[tuple[int, str | None]]:
    """(bytes looked at, what is wrong or None) of the tokenizer and of every shard; all is read and held against its hashes."""
    yield 0, _told(lambda: check_tokenizer(folder, manifest))
    yield 0, _told(lambda: read_token_bytes(folder, manifest))
    for split in SPLITS:
        stream = TokenShards(folder, manifest, split, "read")
        for index in range(stream.num_shards):
            yield stream.file_bytes(index), _told(lambda stream=stream, index=index: stream.check_shard(index))


def _told(check: Callable[[], object]) -> str | None:
    try:
        check()
    except DataError as error:
        return str(error)
    return None
