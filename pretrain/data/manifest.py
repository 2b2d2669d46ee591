"""The manifest of a data folder: what it holds, and which tokenizer made it.

manifest.json says what the shards are; the table of shards lies beside it (`shard_table`), under a name that holds its hash, so
that whoever reads a folder while it grows sees one state of it. The manifest is written last and replaced whole: a folder with
one is complete, or says that it is not (`complete`), and then the shards that it lists are the first ones of each source, in
plan order. Names of files are relative and may not leave the folder.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pretrain.data.prepare_settings import MAIN_SOURCE as MAIN_SOURCE
from pretrain.data.shard_table import BadTable, ShardTable
from pretrain.data.shard_table import ShardRecord as ShardRecord
from pretrain.errors import DataError
from pretrain.files import hash_bytes, told_as_storage_error, write_atomically

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

END_OF_TEXT, TARGET, PADDING = "<|endoftext|>", "<|target|>", "<|padding|>"
"""Ends every document; stands between the two sides of a pair; fills up batches, never stored."""

MANIFEST_NAME, TOKENIZER_NAME, TOKEN_BYTES_NAME = "manifest.json", "tokenizer.json", "token_bytes.bin"
MANIFEST_FORMAT = 2
READ_ATTEMPTS = 5
"""A folder that grows may replace its table between the reading of the manifest and of the table."""


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """The shards of a split, or of one source of it, in the order in which they make one stream of tokens."""

    table: ShardTable
    rows: slice

    @classmethod
    def of(cls, shards: Sequence[ShardRecord]) -> "SplitRecord":
        """A split of some shards; sources in the order in which they appear."""
        sources = tuple(dict.fromkeys(shard.source for shard in shards)) or (MAIN_SOURCE,)
        return cls(ShardTable.of([(0, shard) for shard in shards], sources), slice(0, len(shards)))

    def __len__(self) -> int:
        return self.rows.stop - self.rows.start

    def column(self, name: str) -> np.ndarray:
        """(N,) of each shard: `tokens`, `documents`, `text_bytes` or `file_bytes` (int64), or `hash` (16 bytes)."""
        values = self.table.columns[name][self.rows]
        return values if name == "hash" else values.astype(np.int64)

    def shard(self, index: int) -> ShardRecord:
        """A shard by its place in the split."""
        return self.table.record(self.rows.start + index)

    @cached_property
    def shards(self) -> tuple[ShardRecord, ...]:
        """All of them; as Python objects, so not for the fast path of large folders."""
        return tuple(self.shard(index) for index in range(len(self)))

    def of_source(self, source: str) -> "SplitRecord":
        """The shards of one source. Raises KeyError for a name that is none."""
        if source not in self.table.sources:
            raise KeyError(source)
        place = self.table.sources.index(source)
        within = self.table.columns["source"][self.rows]
        first, last = (int(within.searchsorted(place, side=side)) for side in ("left", "right"))
        return SplitRecord(self.table, slice(self.rows.start + first, self.rows.start + last))

    @property
    def tokens(self) -> int:
        """Tokens, the ends of documents included."""
        return int(self.column("tokens").sum())

    @property
    def documents(self) -> int:
        """Documents, or pairs."""
        return int(self.column("documents").sum())

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of text."""
        return int(self.column("text_bytes").sum())

    @property
    def counts(self) -> dict[str, int]:
        """Shards, tokens, documents and bytes of text."""
        return {"shards": len(self), "tokens": self.tokens, "documents": self.documents, "text_bytes": self.text_bytes}


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that no text can produce."""

    end_of_text: int
    target: int
    padding: int


@dataclass(frozen=True)
class Manifest:
    """What a data folder holds."""

    kind: Literal["text", "pairs"]
    vocab_size: int
    """Special tokens included."""
    tokenizer_hash: str
    """XXH3-128 of tokenizer.json."""
    special: SpecialTokens
    splits: Mapping[Split, SplitRecord]
    sources: tuple[str, ...] = (MAIN_SOURCE,)
    """Names of the corpora that the shards come from."""
    prepare: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the folder was made with."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """What was read and left out: documents, duplicates, empty and bad ones."""
    complete: bool = True
    """False while the folder grows: shards are only ever added behind those of their source."""
    roots: tuple[str, ...] = ()
    """Absolute folders outside of this one, in which the tokens of linked shards lie (`linked_shard`)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the stored tokens."""
        return token_dtype(self.vocab_size)

    @cached_property
    def hash(self) -> str:
        """XXH3-128 over shards, tokenizer and order of the streams; not over how they were made."""
        files = {
            split: {name: self.source(split, name).column("hash").tobytes().hex() for name in self.sources}
            for split in sorted(self.splits)
        }
        return hash_bytes(json.dumps([self.kind, self.vocab_size, self.tokenizer_hash, files]).encode())

    def source(self, split: Split, name: str) -> SplitRecord:
        """The shards of one source of a split. Raises DataError for a name that is no source of the folder."""
        if name not in self.sources:
            raise DataError(f"{name!r} is no source of the data folder; it has {', '.join(self.sources)}")
        record = self.splits[split]
        return record.of_source(name) if name in record.table.sources else SplitRecord(record.table, slice(0, 0))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the table of shards, then the manifest that names it; the tables before the last one are deleted.

    Raises StorageError.
    """
    rows = [(at, shard) for at, split in enumerate(SPLITS) for shard in manifest.splits[split].shards]
    table = ShardTable.of(rows, manifest.sources).to_bytes()
    index = {"file": f"shards-{hash_bytes(table)[:16]}.index", "hash": hash_bytes(table)}
    previous = _index_name(folder)
    write_atomically(folder / index["file"], table)
    content = {
        "format": MANIFEST_FORMAT,
        "complete": manifest.complete,
        "kind": manifest.kind,
        "vocab_size": manifest.vocab_size,
        "tokenizer_hash": manifest.tokenizer_hash,
        "special": asdict(manifest.special),
        "index": index,
        "counts": {
            split: {**manifest.splits[split].counts, "sources": {
                name: manifest.source(split, name).counts for name in manifest.sources
            }}
            for split in SPLITS
        },
        "sources": list(manifest.sources),
        "roots": list(manifest.roots),
        "prepare": dict(manifest.prepare),
        "corpus": dict(manifest.corpus),
    }  # fmt: skip
    content["hash"] = _seal(content)
    write_atomically(folder / MANIFEST_NAME, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    # Only while it grows may a reader still look for the table before this one.
    keep = {index["file"], None if manifest.complete else previous}
    for path in folder.glob("shards-*.index"):
        if path.name not in keep:
            path.unlink(missing_ok=True)


def _seal(content: Mapping[str, Any]) -> str:
    """Hash of what a manifest says, `roots` aside, which may be edited: a number changed by hand would change what is trained."""
    sealed = {name: value for name, value in content.items() if name not in ("hash", "roots")}
    return hash_bytes(json.dumps(sealed, sort_keys=True).encode())


def _index_name(folder: Path) -> str | None:
    try:
        return json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))["index"]["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a data folder.

    Raises DataError where it or its table is missing, damaged, of another format, or names a file outside the folder.
    """
    for attempt in range(READ_ATTEMPTS):
        try:
            return _read_manifest(Path(folder))
        except _TableGone as error:
            if attempt == READ_ATTEMPTS - 1:
                raise _bad_manifest(Path(folder) / MANIFEST_NAME, f"its table {error} is missing") from None
    raise AssertionError("the last attempt returns or raises")


class _TableGone(Exception):
    """The table that a manifest names is not there."""


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_NAME
    try:
        with told_as_storage_error(path):
            text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{path}: not found; `pretrain prepare CONFIG` makes the data folder that data.dir names"
        ) from None
    except NotADirectoryError:
        raise DataError(f"{folder}: data.dir must be a folder, not a file") from None
    except UnicodeDecodeError:
        raise _bad_manifest(path, "it is not UTF-8") from None
    try:
        content = json.loads(text)
        if content["format"] != MANIFEST_FORMAT:
            raise _bad_manifest(path, f"format {content['format']}, this version reads {MANIFEST_FORMAT}")
        return _parse_manifest(content, folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad_manifest(path, f"{type(error).__name__}: {error}") from None


def _bad_manifest(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: not a readable manifest ({reason}); delete the file and run `pretrain prepare` again")


def _parse_manifest(content: Mapping[str, Any], folder: Path) -> Manifest:
    if content["hash"] != _seal(content):
        raise ValueError("it was edited or damaged: it does not match its own hash")
    sources = _texts(content["sources"])
    table = _read_table(folder, content["index"], sources)
    splits: dict[Split, SplitRecord] = {split: SplitRecord(table, table.rows_of(at)) for at, split in enumerate(SPLITS)}
    if sum(map(len, splits.values())) != len(table):
        raise ValueError("the table holds a split that is none")
    for split, record in splits.items():
        if record.counts != {name: content["counts"][split][name] for name in record.counts}:
            raise ValueError(f"the counts of split {split} are not those of its table")
    if content["kind"] not in ("text", "pairs"):
        raise ValueError(f"kind {content['kind']!r} is neither text nor pairs")
    if type(content["complete"]) is not bool:
        raise ValueError(f"complete must be true or false, not {content['complete']!r}")
    return Manifest(
        kind=content["kind"],
        vocab_size=int(content["vocab_size"]),
        tokenizer_hash=str(content["tokenizer_hash"]),
        special=SpecialTokens(**{name: int(number) for name, number in content["special"].items()}),
        splits=splits,
        sources=sources,
        prepare=content["prepare"],
        corpus=content["corpus"],
        complete=content["complete"],
        roots=_roots(content.get("roots", ())),
    )


def _texts(values: Iterable[Any]) -> tuple[str, ...]:
    texts = tuple(values)
    if not texts or len(set(texts)) != len(texts) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError(f"sources must be different names, not {list(texts)}")
    return texts


def _roots(values: Iterable[Any]) -> tuple[str, ...]:
    roots = tuple(values)
    if not all(isinstance(root, str) and Path(root).is_absolute() and "\0" not in root for root in roots):
        raise ValueError(f"roots must be absolute folders, not {list(roots)}")
    return roots


def _read_table(folder: Path, index: Mapping[str, Any], sources: tuple[str, ...]) -> ShardTable:
    name = index["file"]
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    path = folder / name
    try:
        with told_as_storage_error(path):
            content = path.read_bytes()
    except FileNotFoundError:
        raise _TableGone(name) from None
    if hash_bytes(content) != index["hash"]:
        raise ValueError(f"{name} does not match its hash")
    try:
        return ShardTable.from_bytes(content, sources)
    except BadTable as error:
        raise ValueError(f"{name}: {error}") from None


def read_token_bytes(folder: str | Path, manifest: Manifest) -> np.ndarray:
    """(V,) uint16: bytes of text that each token stands for, 0 for special tokens. Raises DataError."""
    path = Path(folder) / TOKEN_BYTES_NAME
    try:
        with told_as_storage_error(path):
            lengths = np.fromfile(path, dtype="<u2")
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `pretrain prepare` again to rebuild it") from None
    if len(lengths) != manifest.vocab_size:
        raise DataError(
            f"{path}: holds {len(lengths)} entries for a vocabulary of {manifest.vocab_size}; "
            "delete the file and run `pretrain prepare` again"
        )
    return lengths


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrowest type that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")
