"""The manifest of a data folder: what it holds, and which tokenizer made it.

One JSON file, written last: a folder with a manifest is complete. It lists the shards of both splits in the order in which they
make one stream, with counts and hashes, so opening a folder reads this file and nothing else. Names of files are relative and may
not leave the folder. At tens of thousands of shards a binary index would open faster; JSON takes 2 microseconds a shard.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pretrain.errors import DataError
from pretrain.files import hash_bytes, path_within, told_as_storage_error

Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = ("train", "validation")

END_OF_TEXT, TARGET, PADDING = "<|endoftext|>", "<|target|>", "<|padding|>"
"""Ends every document; stands between the two sides of a pair; fills up batches, never stored."""

MANIFEST_NAME, TOKENIZER_NAME, TOKEN_BYTES_NAME = "manifest.json", "tokenizer.json", "token_bytes.bin"
MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class ShardRecord:
    """One shard, as the manifest lists it."""

    file: str
    """Relative to the data folder."""
    tokens: int
    documents: int
    text_bytes: int
    """UTF-8 bytes of the text that the tokens stand for."""
    file_bytes: int
    hash: str
    """XXH3-128 of the file."""


@dataclass(frozen=True)
class SplitRecord:
    """The shards of a split, in the order in which they make one stream of tokens."""

    shards: tuple[ShardRecord, ...]

    @property
    def tokens(self) -> int:
        """Tokens, the ends of documents included."""
        return sum(shard.tokens for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents, or pairs."""
        return sum(shard.documents for shard in self.shards)

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of text."""
        return sum(shard.text_bytes for shard in self.shards)


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
    prepare: Mapping[str, Any] = field(default_factory=dict)
    """The settings that the folder was made with."""
    corpus: Mapping[str, Any] = field(default_factory=dict)
    """What was read and left out: documents, duplicates, empty and bad ones."""

    @property
    def dtype(self) -> np.dtype:
        """Of the stored tokens."""
        return token_dtype(self.vocab_size)

    @property
    def hash(self) -> str:
        """XXH3-128 over shards, tokenizer and order of the stream; not over how they were made."""
        files = {split: [shard.hash for shard in self.splits[split].shards] for split in sorted(self.splits)}
        return hash_bytes(json.dumps([self.kind, self.vocab_size, self.tokenizer_hash, files]).encode())

    def to_json(self) -> str:
        """The text of manifest.json."""
        content = {"format": MANIFEST_FORMAT, **asdict(self)}
        content["counts"] = {
            name: {"tokens": split.tokens, "documents": split.documents, "text_bytes": split.text_bytes}
            for name, split in self.splits.items()
        }
        return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a data folder.

    Raises DataError where it is missing, damaged, of another format, or names a file outside the folder.
    """
    path = Path(folder) / MANIFEST_NAME
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
        manifest = _parse_manifest(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _bad_manifest(path, f"{type(error).__name__}: {error}") from None
    for record in manifest.splits.values():
        for shard in record.shards:
            try:
                path_within(Path(folder), shard.file)
            except ValueError as error:
                raise _bad_manifest(path, str(error)) from None
    return manifest


def _bad_manifest(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: not a readable manifest ({reason}); delete the file and run `pretrain prepare` again")


def _parse_manifest(content: Mapping[str, Any]) -> Manifest:
    splits: dict[Split, SplitRecord] = {
        split: SplitRecord(tuple(ShardRecord(**shard) for shard in content["splits"][split]["shards"]))
        for split in SPLITS
    }
    for record in splits.values():
        for shard in record.shards:
            counts = (shard.tokens, shard.documents, shard.text_bytes, shard.file_bytes)
            if not isinstance(shard.file, str) or not all(type(count) is int and count >= 0 for count in counts):
                raise ValueError(f"{shard.file!r}: counts must be non-negative integers")
    if content["kind"] not in ("text", "pairs"):
        raise ValueError(f"kind {content['kind']!r} is neither text nor pairs")
    return Manifest(
        kind=content["kind"],
        vocab_size=int(content["vocab_size"]),
        tokenizer_hash=str(content["tokenizer_hash"]),
        special=SpecialTokens(**{name: int(number) for name, number in content["special"].items()}),
        splits=splits,
        prepare=content["prepare"],
        corpus=content["corpus"],
    )


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
