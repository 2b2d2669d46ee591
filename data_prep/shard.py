"""The two tasks of a preparation, as functions of a file range: `scan_range` hashes, `shard_range` tokenizes and writes.

Both are pure in what they are given, so that any process may run them in any order, twice if one is killed. Their results are
kept under a hash of all that they depend on (`Ledger`), and a second run finds them there.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from data_prep.dedup import TRAIN, VALIDATION, as_keys, document_keys, pair_keys
from data_prep.items import BadDocument, Document, FileRange
from data_prep.read import read_range
from data_prep.tokenize import Encoder
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.token_shards import SPLITS, TOKENIZER_NAME, Origin, ShardRecord, Split, token_dtype, write_shard
from pretrain.errors import DataError
from pretrain.files import hash_bytes, write_atomically

ENCODE_BYTES = 1 << 20
"""Text handed to the tokenizer at once."""
FATE_OF: dict[Split, int] = {"train": TRAIN, "validation": VALIDATION}


@dataclass(frozen=True)
class Scan:
    """What a range holds, without its text."""

    keys: np.ndarray
    """(N, K) of data_prep.dedup."""
    sizes: np.ndarray
    """(N,) int64: UTF-8 bytes of each document."""
    content: str
    """XXH3-128 over all documents, as they are."""
    bad: tuple[BadDocument, ...]
    dropped: dict[str, int] = field(default_factory=dict)
    """How many documents were left out, by reason."""

    def to_json(self) -> str:
        """Exact text form, for the ledger."""
        return json.dumps(
            {
                "columns": self.keys.shape[1],
                "keys": self.keys.tobytes().hex(),
                "sizes": self.sizes.tolist(),
                "content": self.content,
                "bad": [asdict(document) for document in self.bad],
                "dropped": self.dropped,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Scan":
        """The inverse of `to_json`."""
        content = json.loads(text)
        return cls(
            keys=as_keys([bytes.fromhex(content["keys"])], content["columns"]),
            sizes=np.array(content["sizes"], dtype=np.int64),
            content=content["content"],
            bad=tuple(BadDocument(**document) for document in content["bad"]),
            dropped=content["dropped"],
        )


@dataclass(frozen=True)
class ShardTask:
    """All that writing the shards of one range depends on."""

    files: FileRange
    prepare: PrepareSettings
    content: str
    """Hash of the documents that the scan found."""
    fates: np.ndarray
    """(N,) uint8 of data_prep.dedup: what becomes of each."""
    folder: Path
    tokenizer_hash: str
    config_hash: str

    @property
    def source_hash(self) -> str:
        """XXH3-128 of the documents and their fates."""
        return hash_bytes(self.content.encode() + self.fates.tobytes())

    @property
    def key(self) -> str:
        """Under which the result is kept."""
        return hash_bytes(
            f"shards/{self.files.index}/{self.source_hash}/{self.tokenizer_hash}/{self.config_hash}".encode()
        )


@dataclass(frozen=True)
class ShardResult:
    """The shards of one range."""

    shards: dict[Split, tuple[ShardRecord, ...]]

    def to_json(self) -> str:
        """Exact text form, for the ledger."""
        return json.dumps({split: [asdict(shard) for shard in shards] for split, shards in self.shards.items()})

    @classmethod
    def from_json(cls, text: str) -> "ShardResult":
        """The inverse of `to_json`."""
        content = json.loads(text)
        return cls({split: tuple(ShardRecord(**shard) for shard in content[split]) for split in SPLITS})


class Ledger:
    """Results of finished tasks, one small file each, named by the hash of what they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, key: str) -> str | None:
        """The result kept under a key; None where there is none."""
        try:
            return (self._folder / f"{key}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None

    def keep(self, key: str, result: str) -> None:
        """Keeps a result. Raises StorageError."""
        write_atomically(self._folder / f"{key}.json", result)


class ContentHash:
    """XXH3-128 over documents, their ends and the ends of their sides included."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, document: Document) -> None:
        """Takes in the next document."""
        for side in document.sides:
            self._state.update(side.encode() + b"\0")  # no text holds a NUL
        self._state.update(b"\0")

    @property
    def value(self) -> str:
        """32 hexadecimal digits."""
        return self._state.hexdigest()


def scan_key(files: FileRange, prepare: PrepareSettings) -> str:
    """Under which the scan of a range is kept: its files as they are now, and how they are read."""
    reading = [prepare.sources["main"].model_dump(), prepare.max_document_bytes, prepare.pair_max_characters]
    return hash_bytes(json.dumps(["scan", files.to_dict(), reading], sort_keys=True).encode())


def scan_range(files: FileRange, prepare: PrepareSettings) -> Scan:
    """Hashes the documents of a range and collects what is bad."""
    columns = 1 if prepare.kind == "text" else 2
    content = ContentHash()
    digests: list[bytes] = []
    sizes: list[int] = []
    bad: list[BadDocument] = []
    dropped: dict[str, int] = {}
    for item in read_range(files, prepare.sources[files.source], prepare):
        if isinstance(item, Document):
            content.add(item)
            digests += _digests(item)
            sizes.append(item.text_bytes)
        elif isinstance(item, BadDocument):
            bad.append(item)
        else:
            dropped[item.reason] = dropped.get(item.reason, 0) + 1
    return Scan(as_keys(digests, columns), np.array(sizes, dtype=np.int64), content.value, tuple(bad), dropped)


def texts_of(files: FileRange, prepare: PrepareSettings, wanted: np.ndarray) -> Iterator[str]:
    """Texts (both sides of pairs) of the documents of a range that are wanted, (N,) bool."""
    documents = (
        item for item in read_range(files, prepare.sources[files.source], prepare) if isinstance(item, Document)
    )
    for document, take in zip(documents, wanted.tolist(), strict=False):
        if take:
            yield from document.sides


def _digests(document: Document) -> list[bytes]:
    return document_keys(*document.sides) if len(document.sides) == 1 else pair_keys(*document.sides)


def shard_range(task: ShardTask) -> ShardResult:
    """Tokenizes the documents of a range and writes its shards of both splits.

    Raises:
        DataError: a file changed since it was scanned.
        StorageError: a full disk, or a folder that cannot be written.
    """
    settings = task.prepare.tokenizer
    encoder = Encoder(task.folder / TOKENIZER_NAME, settings.engine, settings.audit_fraction)
    documents = [
        item
        for item in read_range(task.files, task.prepare.sources[task.files.source], task.prepare)
        if isinstance(item, Document)
    ]
    content = ContentHash()
    for document in documents:
        content.add(document)
    if content.value != task.content:
        raise DataError(
            f"{task.files.parts[0].name} (or a file up to {task.files.parts[-1].name}) changed while it was being prepared; "
            "run `pretrain prepare` again once the corpus is at rest"
        )
    shards = {}
    for split in SPLITS:
        chosen = [documents[at] for at in np.flatnonzero(task.fates == FATE_OF[split])]
        if task.prepare.kind == "pairs":
            # Catalogues list their messages by theme; in the order of hashes, neighbours that share a row have nothing in common.
            chosen.sort(key=_digests)
        shards[split] = tuple(_write_shards(task, split, chosen, encoder))
    return ShardResult(shards)


def _write_shards(
    task: ShardTask, split: Split, documents: Sequence[Document], encoder: Encoder
) -> Iterator[ShardRecord]:
    origin = Origin(task.source_hash, task.tokenizer_hash, task.config_hash)
    dtype = token_dtype(encoder.vocab_size)
    pending: list[tuple[np.ndarray, int, int]] = []  # tokens, source length, text bytes
    number = tokens = 0

    def flush() -> ShardRecord:
        ids, sources, sizes = zip(*pending, strict=True)
        return write_shard(
            task.folder,
            f"{split}/{task.files.index:06d}-{number:03d}.tokens",
            np.concatenate(ids).astype(dtype),
            np.array([len(document) for document in ids]),
            text_bytes=sum(sizes),
            origin=origin,
            source_lengths=np.array(sources) if task.prepare.kind == "pairs" else None,
        )

    for ids, source, size in _encoded(documents, encoder):
        if pending and tokens + len(ids) > task.prepare.shard_tokens:
            yield flush()
            pending, number, tokens = [], number + 1, 0
        pending.append((ids, source, size))
        tokens += len(ids)
    if pending:
        yield flush()


def _encoded(documents: Sequence[Document], encoder: Encoder) -> Iterator[tuple[np.ndarray, int, int]]:
    """(tokens with special ones, tokens of the source, bytes of text) of each document."""
    special = encoder.special
    for group in _groups(documents):
        ids = iter(encoder.encode([side for document in group for side in document.sides]))
        for document in group:
            first = next(ids)
            if len(document.sides) == 1:
                yield np.append(first, special.end_of_text), 0, document.text_bytes
            else:
                pair = np.concatenate([first, [special.target], next(ids), [special.end_of_text]])
                yield pair, len(first), document.text_bytes


def _groups(documents: Sequence[Document]) -> Iterator[list[Document]]:
    group: list[Document] = []
    size = 0
    for document in documents:
        group.append(document)
        size += document.text_bytes
        if size >= ENCODE_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
