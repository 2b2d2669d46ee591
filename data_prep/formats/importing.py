"""What every import shares: token files of any format into a data folder of ours.

All files are opened and their indexes checked before anything is written; then they are read once, in batches: ids and ends
of documents are checked, held-out documents taken aside, and shards written at their usual size. Memory: one batch and one
shard of each split. Every file begins new shards, so a file that is imported again alone gives the same ones. The manifest comes
last; an import that was stopped starts over.

Which documents are held out is decided by a hash of their tokens, so equal documents are never on both sides, and the choice
needs no memory. Cost: a hash a document, about a microsecond; nothing where the validation files are given.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash

from data_prep.folder import LOCK_NAME, locked
from data_prep.formats.shard_writer import SplitWriter
from data_prep.formats.token_files import Batch, TokenFile
from data_prep.formats.tokenizers import ImportedTokenizer, read_imported_tokenizer
from pretrain.data.manifest import (
    MANIFEST_NAME,
    SPLITS,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    Manifest,
    Split,
    SplitRecord,
    token_dtype,
    write_manifest,
)
from pretrain.data.token_shards import Origin
from pretrain.errors import ConfigError, DataError
from pretrain.files import hash_bytes, hash_file, write_atomically

DocumentEnd = Literal["present", "append"]
"""Whether each document already ends with the end-of-text token, or it is to be added to each."""

OPEN = "import.json"
"""Stands in a folder while an import is at work in it."""


@dataclass(frozen=True)
class ImportReport:
    """What an import made."""

    format: str
    folder: Path
    files: int
    tokens: dict[Split, int]
    documents: dict[Split, int]
    empty_documents: int
    """Left out: they held no token."""
    vocab_size: int
    notes: tuple[str, ...]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def of(
        cls, name: str, folder: Path, files: int, manifest: Manifest, notes: tuple[str, ...], started: float
    ) -> "ImportReport":
        """The report on a finished folder; `started` is of time.monotonic."""
        return cls(
            name,
            folder,
            files,
            {split: manifest.splits[split].tokens for split in SPLITS},
            {split: manifest.splits[split].documents for split in SPLITS},
            manifest.corpus["empty"],
            manifest.vocab_size,
            notes,
            time.monotonic() - started,
        )

    def lines(self) -> list[str]:
        """The report for people."""
        counts = ", ".join(f"{self.tokens[split]:,} tokens of {split}" for split in SPLITS)
        documents, files = sum(self.documents.values()), "file" if self.files == 1 else "files"
        return [
            f"{self.folder}: {counts}, vocabulary {self.vocab_size:,}",
            f"  {documents:,} documents from {self.files:,} {files} ({self.format}) in {self.seconds:.1f} s; "
            f"left out: {self.empty_documents:,} empty",
            *(f"  {note}" for note in self.notes),
        ]


def import_files(
    opener: Callable[[Path], TokenFile],
    files: Sequence[Path],
    folder: Path,
    tokenizer: Path,
    *,
    format_name: str,
    document_end: DocumentEnd,
    end_of_text: str,
    validation: float | Sequence[Path],
    shard_tokens: int,
) -> ImportReport:
    """Copies token files into a new data folder; `opener` opens one and checks its index.

    Raises ConfigError for arguments that make no sense, DataError for damaged or unfitting files, StorageError.
    """
    started = time.monotonic()
    held_out, validation_files = held_out_of(validation)
    check_arguments(files, validation_files, document_end, shard_tokens)
    known = read_imported_tokenizer(tokenizer, end_of_text)
    for file in [*files, *validation_files]:
        opener(file)
    with locked(folder):
        begin_folder(folder, known)
        work = _Import(folder, known, document_end, end_of_text, shard_tokens)
        for file in files:
            work.copy(opener(file), held_out, "train")
        for file in validation_files:
            work.copy(opener(file), 0.0, "validation")
        corpus = {"format": format_name, "document_end": document_end, "empty": work.empty}
        manifest = finish_folder(folder, known, work.writers, held_out, corpus)
    return ImportReport.of(
        format_name, folder, len(files) + len(validation_files), manifest, tuple(work.notes), started
    )


def check_arguments(
    files: Sequence[Path], validation_files: Sequence[Path], document_end: DocumentEnd, shard_tokens: int
) -> None:
    """Raises ConfigError for no file, one that is given twice, and values out of range."""
    if not files:
        raise ConfigError("import: no file is given; name one or more")
    seen: set[Path] = set()
    for file in [*files, *validation_files]:
        if file.resolve() in seen:
            raise ConfigError(
                f"import: {file} is given twice; a document would be read twice, or be trained and validated on"
            )
        seen.add(file.resolve())
    if document_end not in ("present", "append"):
        raise ConfigError(f"import: document_end is {document_end!r}, not 'present' or 'append'")
    if shard_tokens < 1:
        raise ConfigError(f"import: shard_tokens is {shard_tokens}, it must be 1 or more")


def begin_folder(folder: Path, known: ImportedTokenizer) -> None:
    """Empties a folder that an import was stopped in, and writes the tokenizer.

    Raises DataError where the folder holds anything else, StorageError.
    """
    if (folder / MANIFEST_NAME).exists():
        raise DataError(f"{folder}: holds a finished data folder; name another one, or delete it")
    strangers = sorted(entry.name for entry in folder.iterdir() if entry.name != LOCK_NAME)
    if strangers and OPEN not in strangers:
        raise DataError(f"{folder}: is not empty (it holds {strangers[0]!r}); name a new folder")
    for split in SPLITS:
        for shard in (folder / split).glob("*.tokens*"):
            shard.unlink()
    write_atomically(folder / OPEN, "{}\n")
    write_atomically(folder / TOKENIZER_NAME, known.content)
    write_atomically(folder / TOKEN_BYTES_NAME, known.token_bytes.tobytes())


def finish_folder(
    folder: Path,
    known: ImportedTokenizer,
    writers: Mapping[Split, SplitWriter],
    held_out: float,
    corpus: Mapping[str, Any],
    roots: Sequence[str] = (),
) -> Manifest:
    """Writes the manifest. Raises DataError where a split that was asked for has no document, StorageError."""
    splits: dict[Split, SplitRecord] = {split: SplitRecord.of(writers[split].records) for split in SPLITS}
    counts = {split: splits[split].documents for split in SPLITS}
    if counts["train"] == 0 or (held_out > 0 and counts["validation"] == 0):
        raise DataError(
            f"{folder}: {counts['train']:,} documents for train and {counts['validation']:,} for validation at a "
            f"held-out share of {held_out}; choose another share, or name files for validation"
        )
    manifest = Manifest(
        kind="text",
        vocab_size=known.vocab_size,
        tokenizer_hash=hash_bytes(known.content.encode()),
        special=known.special,
        splits=splits,
        corpus={**corpus, "documents": sum(counts.values())},
        roots=tuple(roots),
    )
    write_manifest(folder, manifest)
    (folder / OPEN).unlink()
    return manifest


def held_out_of(validation: float | Sequence[Path]) -> tuple[float, Sequence[Path]]:
    """The share of documents to hold out, and the files. Raises ConfigError."""
    if not isinstance(validation, int | float):
        return 0.0, validation
    if not 0 <= validation < 1:
        raise ConfigError(f"import: the share of held-out documents is {validation}, it must be 0 or more and below 1")
    return float(validation), ()


class _Import:
    """An import at work in its folder."""

    def __init__(
        self, folder: Path, known: ImportedTokenizer, document_end: DocumentEnd, end_of_text: str, shard_tokens: int
    ) -> None:
        self.folder, self.known = folder, known
        self.document_end: DocumentEnd = document_end
        self.end_of_text = end_of_text
        self.dtype = token_dtype(known.vocab_size)
        self.empty = 0
        self.notes: list[str] = []
        self._tokenizer_hash = hash_bytes(known.content.encode())
        self._config_hash = hash_bytes(f"import/{document_end}/{shard_tokens}".encode())
        self._files = 0
        self.writers: dict[Split, SplitWriter] = {
            split: SplitWriter(folder, split, known.token_bytes, shard_tokens) for split in SPLITS
        }

    def copy(self, file: TokenFile, held_out: float, split: Split) -> None:
        """Copies a file's documents to a split, the held-out share of them to validation."""
        source = hash_file(file.index)
        for writer in self.writers.values():
            writer.begin(self._files, Origin(source, self._tokenizer_hash, self._config_hash))
        for batch in file.batches():
            check_batch(file, batch, self.known, self.document_end, self.end_of_text)
            kept = batch.lengths > 0
            self.empty += int((~kept).sum())
            tokens, lengths = batch.tokens.astype(self.dtype), batch.lengths[kept]
            if self.document_end == "append":
                tokens, lengths = _with_ends(tokens, lengths, self.known.special.end_of_text)
            self._add(tokens, lengths, held_out, split)
        for writer in self.writers.values():
            writer.flush()
        self.notes += file.notes
        self._files += 1

    def _add(self, tokens: np.ndarray, lengths: np.ndarray, held_out: float, split: Split) -> None:
        if held_out == 0:
            self.writers[split].add(tokens, lengths)
            return
        aside = _held_out(tokens, lengths, held_out)
        of_tokens = np.repeat(aside, lengths)
        self.writers[split].add(tokens[~of_tokens], lengths[~aside])
        self.writers["validation"].add(tokens[of_tokens], lengths[aside])


def check_batch(
    file: TokenFile, batch: Batch, known: ImportedTokenizer, document_end: DocumentEnd, end_of_text: str
) -> None:
    """Raises DataError for an id that the tokenizer does not have, for ends of documents that are not as said, and for a
    document that is too long."""
    tokens, lengths = batch.tokens, batch.lengths
    if len(tokens) == 0:
        return
    if int(lengths.max()) >= (1 << 32) - 1:
        raise DataError(
            f"{file.path}: document {batch.first + int(lengths.argmax()):,} has over 2^32 - 2 tokens; split it"
        )
    if int(tokens.max()) >= known.known_ids or int(tokens.min()) < 0:
        place = int(((tokens >= known.known_ids) | (tokens < 0)).argmax())
        document = batch.first + int(np.cumsum(lengths).searchsorted(place, side="right"))
        raise DataError(
            f"{file.path}: document {document:,} holds token id {int(tokens[place]):,}, {known.path} has ids 0 to "
            f"{known.known_ids - 1:,}; give the tokenizer that the file was made with"
        )
    last = tokens[np.cumsum(lengths[lengths > 0]) - 1]
    ended = int((last == known.special.end_of_text).sum())
    if ended != (len(last) if document_end == "present" else 0):
        raise _wrong_ends(file, known, document_end, end_of_text)


def _wrong_ends(file: TokenFile, known: ImportedTokenizer, document_end: DocumentEnd, end_of_text: str) -> DataError:
    ended = total = 0
    for last in file.last_tokens():
        ended += int((last == known.special.end_of_text).sum())
        total += len(last)
    name = f"{end_of_text} (id {known.special.end_of_text})"
    if 0 < ended < total:
        return DataError(
            f"{file.path}: {total - ended:,} of {total:,} documents do not end with {name}, the others do; "
            "tokenize it again with one rule for all, or name its end token with end_of_text"
        )
    if document_end == "present":
        return DataError(
            f"{file.path}: {total:,} of {total:,} documents do not end with {name}; choose document_end append to add "
            "it to each, or name the token that they end with by end_of_text"
        )
    return DataError(
        f"{file.path}: {ended:,} of {total:,} documents already end with {name}; choose document_end present"
    )


def _with_ends(tokens: np.ndarray, lengths: np.ndarray, end_of_text: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents with one more token each."""
    lengths = lengths + 1
    longer = np.empty(int(lengths.sum()), tokens.dtype)
    ends = np.cumsum(lengths) - 1
    own = np.ones(len(longer), dtype=bool)
    own[ends] = False
    longer[own], longer[ends] = tokens, end_of_text
    return longer, lengths


def _held_out(tokens: np.ndarray, lengths: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: documents whose hash is below the share. Hashed as uint32, whatever their type is in the file."""
    content = tokens.astype("<u4").tobytes()
    ends = (4 * np.cumsum(lengths)).tolist()
    hashes = [xxhash.xxh3_64_intdigest(content[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return np.array(hashes, dtype=np.uint64) < np.uint64(int(share * 2**64))
