"""The second pass, and the only one where nothing needs to have seen everything: from a range of files to its token shards.

Pure in what it is given, so that any process may do it, in any order, twice if one is killed. Documents stream: a shard is
written whenever it is full, and no more than a batch of text and a shard of tokens for each split is held. The hash of the
documents is compared with that of the first pass at the end; if they changed in between, what was written is taken back and
nothing is recorded.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.counts import Counts
from data_prep.dedup import DROPPED, TRAIN, VALIDATION, as_keys
from data_prep.items import FileRange
from data_prep.ledger import Ledger, Record
from data_prep.scan import ScanTask, described, keys_of
from data_prep.shard_writer import ShardWriter, Target
from data_prep.sieve import ContentHash, Read, batches, sieve_of
from data_prep.tokenize import Encoder
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.token_shards import SPLITS, TOKENIZER_NAME, Origin, ShardRecord, Split
from pretrain.data.tokenizer_settings import EngineName
from pretrain.errors import DataError
from pretrain.files import hash_bytes

FATE_OF: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION}


@dataclass(frozen=True)
class Judged:
    """What the first pass decided about the documents of a range."""

    content: str
    """Hash of the documents that it found."""
    fates: np.ndarray
    """(N,) uint8 of data_prep.dedup: what becomes of each."""

    @property
    def hash(self) -> str:
        """XXH3-128 of both."""
        return hash_bytes(self.content.encode() + self.fates.tobytes())


@dataclass(frozen=True)
class ShardTask:
    """All that writing the shards of one range depends on."""

    files: FileRange
    corpus: CorpusSettings
    prepare: PrepareSettings
    sieve: str
    """Identity of the cleaning."""
    judged: Judged | None
    """None: there was no first pass, and each document is judged as it comes."""
    folder: Path
    tokenizer_hash: str
    config_hash: str
    records: Path
    """Where the result is kept."""

    @property
    def key(self) -> str:
        """Under which the result is kept."""
        source = self.judged.hash if self.judged else [self.files.to_dict(), self.corpus.model_dump(mode="json")]
        content = [
            "shards",
            self.files.source,
            self.files.index,
            source,
            self.sieve,
            self.tokenizer_hash,
            self.config_hash,
        ]
        return hash_bytes(json.dumps(content, sort_keys=True).encode())

    def __str__(self) -> str:
        return described(self.files)


@dataclass(frozen=True)
class ShardResult:
    """The shards of one range."""

    source: str
    shards: dict[Split, tuple[ShardRecord, ...]]
    counts: Counts
    """What was read; of a second pass empty, for the first one counted it."""

    @property
    def documents(self) -> int:
        """That were written."""
        return sum(shard.documents for split in SPLITS for shard in self.shards[split])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the ledger."""
        shards = {split: [asdict(shard) for shard in shards] for split, shards in self.shards.items()}
        return {"source": self.source, "shards": shards, "counts": self.counts.to_dict()}

    @classmethod
    def of(cls, record: Record) -> "ShardResult":
        """From the ledger."""
        content = record.values["shards"]
        shards: dict[Split, tuple[ShardRecord, ...]] = {
            split: tuple(ShardRecord(**shard) for shard in content[split]) for split in SPLITS
        }
        return cls(record.values["source"], shards, Counts.from_dict(record.values["counts"]))

    def all_there(self, folder: Path) -> bool:
        """Whether the files are there, whole."""
        shards = (shard for split in SPLITS for shard in self.shards[split])
        return all(_size(folder / shard.file) == shard.file_bytes for shard in shards)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


@lru_cache(maxsize=1)
def _encoder(path: Path, tokenizer_hash: str, engine: EngineName, audit_fraction: float) -> Encoder:
    """The encoder of this process: loading a tokenizer takes as long as encoding megabytes. The hash is part of the key."""
    return Encoder(path, engine, audit_fraction)


def shard_and_keep(task: ShardTask) -> ShardResult:
    """Writes the shards of a range and keeps the result."""
    result = shard_range(task)
    Ledger(task.records).keep(task.key, result.to_dict())
    return result


def shard_range(task: ShardTask) -> ShardResult:
    """Tokenizes the documents of a range and writes its shards of both splits.

    Raises:
        DataError: a file changed since the first pass.
        StorageError: a full disk, or a folder that cannot be written.
    """
    settings = task.prepare.tokenizer
    encoder = _encoder(task.folder / TOKENIZER_NAME, task.tokenizer_hash, settings.engine, settings.audit_fraction)
    content, counts = ContentHash(), Counts()
    fates = np.empty(0, np.uint8) if task.judged is None else task.judged.fates

    def origin() -> Origin:
        so_far = hash_bytes(content.value.encode() + fates.tobytes())
        return Origin(so_far, task.tokenizer_hash, task.config_hash)

    writers = {split: ShardWriter(_target(task, split), encoder, origin) for split in SPLITS}
    try:
        for split, chosen in _chosen(task, content, counts):
            writers[split].add(chosen)
        if task.judged is not None and content.value != task.judged.content:
            raise _changed(task)
        shards: dict[Split, tuple[ShardRecord, ...]] = {split: tuple(writers[split].close()) for split in SPLITS}
        return ShardResult(task.files.source, shards, Counts() if task.judged else counts)
    except BaseException:
        for writer in writers.values():
            writer.take_back()
        raise


def _target(task: ShardTask, split: Split) -> Target:
    return Target(
        task.folder,
        split,
        task.files.source,
        task.files.index,
        task.prepare.shard_tokens,
        pairs=task.corpus.kind == "pairs",
    )


def _chosen(task: ShardTask, content: ContentHash, counts: Counts) -> Iterator[tuple[Split, Sequence[Read]]]:
    """The documents of both splits, a batch at a time, as they are to be stored."""
    judge = _judge_as_it_comes if task.judged is None else _judge_by_the_first_pass
    order = {split: _Sorted(task.prepare.task_bytes) if task.corpus.kind == "pairs" else _AsRead() for split in SPLITS}
    for split, batch in judge(task, content, counts):
        for chosen in order[split].add(batch):
            yield split, chosen
    for split in SPLITS:
        for chosen in order[split].close():
            yield split, chosen


def _judge_by_the_first_pass(
    task: ShardTask, content: ContentHash, counts: Counts
) -> Iterator[tuple[Split, Sequence[Read]]]:
    assert task.judged is not None
    sieve, fates, at = sieve_of(task.prepare, task.sieve), task.judged.fates, 0
    for batch in batches(task.files, task.corpus, task.prepare, counts):
        here = fates[at : at + len(batch)]
        at += len(batch)
        if len(here) < len(batch):
            raise _changed(task)
        for read in batch:
            content.add(read)
        for split in SPLITS:
            chosen = np.flatnonzero(here == FATE_OF[split]).tolist()
            if chosen:
                yield split, sieve.edit([batch[place] for place in chosen])


def _judge_as_it_comes(task: ShardTask, content: ContentHash, counts: Counts) -> Iterator[tuple[Split, Sequence[Read]]]:
    sieve, fraction = sieve_of(task.prepare, task.sieve), task.prepare.validation_fraction
    for batch in batches(task.files, task.corpus, task.prepare, counts):
        for read in batch:
            content.add(read)
        kept = [read for read in sieve.keep(batch, counts) if read is not None]
        fates = fates_by_hash([keys_of(read)[0] for read in kept], fraction)
        for split in SPLITS:
            chosen = np.flatnonzero(fates == FATE_OF[split]).tolist()
            if chosen:
                yield split, [kept[place] for place in chosen]


def fates_by_hash(digests: list[bytes], fraction: float) -> np.ndarray:
    """(N,) uint8: VALIDATION for a document whose first key is below the fraction, as `data_prep.dedup.held_out_of` has it."""
    high = as_keys(digests, 1)[:, 0]["high"]
    return np.where(high < np.uint64(int(fraction * 2**64)), np.uint8(VALIDATION), np.uint8(TRAIN))


class _AsRead:
    """Documents in the order in which they are read."""

    def add(self, batch: Sequence[Read]) -> Iterable[Sequence[Read]]:
        return [batch]

    def close(self) -> Iterable[Sequence[Read]]:
        return []


class _Sorted:
    """Pairs in the order of their hashes, so many bytes at a time.

    Catalogues list their messages by theme; in the order of hashes, neighbours that share a row have nothing in common.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._size = limit, 0
        self._pairs: list[tuple[list[bytes], Read]] = []

    def add(self, batch: Sequence[Read]) -> Iterable[Sequence[Read]]:
        for read in batch:
            self._pairs.append((keys_of(read), read))
            self._size += read.size
            if self._size >= self._limit:
                yield from self.close()

    def close(self) -> Iterable[Sequence[Read]]:
        if self._pairs:
            self._pairs.sort(key=lambda pair: pair[0])
            chosen = [read for _, read in self._pairs]
            self._pairs, self._size = [], 0
            yield chosen


def _changed(task: ShardTask) -> DataError:
    return DataError(
        f"{task} changed while it was being prepared; run `pretrain prepare` again once the corpus is at rest"
    )


def texts_of(task: ScanTask, wanted: np.ndarray) -> Iterator[str]:
    """Texts (both sides of pairs), as they are kept, of the documents of a range that are wanted, (N,) bool."""
    sieve, at = sieve_of(task.prepare, task.sieve), 0
    for batch in batches(task.files, task.corpus, task.prepare, Counts()):
        chosen = [batch[place] for place in np.flatnonzero(wanted[at : at + len(batch)]).tolist()]
        for read in sieve.edit(chosen):
            yield from read.document.sides
        at += len(batch)


assert DROPPED not in FATE_OF.values()
