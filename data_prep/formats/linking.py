"""Megatron files read where they are: a data folder that describes them and copies no token.

One pass reads each file, checks its ids and ends as an import does, and writes for every 16.8 million tokens a small file with
lengths and checksums (`pretrain.data.linked_shard`); training then maps the .bin itself. It takes what needs no change: uint16 or
int32, each document with its end-of-text token. Held out is the end of each file, since a shard is one stretch of it: equal
documents may stand on both sides, which an import rules out.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.folder import locked
from data_prep.formats.importing import (
    ImportReport,
    begin_folder,
    check_arguments,
    check_batch,
    finish_folder,
    held_out_of,
)
from data_prep.formats.megatron import open_megatron, prefix_of
from data_prep.formats.shard_writer import LinkWriter
from data_prep.formats.token_files import TokenFile
from data_prep.formats.tokenizers import ImportedTokenizer, read_imported_tokenizer
from pretrain.data.linked_shard import Target
from pretrain.data.manifest import END_OF_TEXT, SPLITS, Split
from pretrain.data.token_shards import Origin
from pretrain.errors import DataError
from pretrain.files import hash_bytes, hash_file


def link_megatron(
    prefixes: Sequence[str | Path],
    folder: str | Path,
    tokenizer: str | Path,
    *,
    end_of_text: str = END_OF_TEXT,
    validation: float | Sequence[str | Path] = 0.02,
    shard_tokens: int = 16_777_216,
) -> ImportReport:
    """Makes a data folder whose tokens stay in Megatron's files.

    Args:
        prefixes: each names PREFIX.bin and PREFIX.idx; their order is that of the stream.
        folder: where the data folder is made; must not hold anything else.
        tokenizer: the byte-level tokenizer.json that the ids are of.
        end_of_text: the tokenizer's name for the token that ends each document.
        validation: the share of documents, at the end of each file, that is held out; or prefixes of files to hold out.
        shard_tokens: most tokens in a shard.

    Raises DataError for damaged files, for ids that the tokenizer does not have, for documents without an end, and for types of
    token that need a copy; StorageError.
    """
    started, folder = time.monotonic(), Path(folder)
    given = validation if isinstance(validation, int | float) else [prefix_of(prefix) for prefix in validation]
    held_out, held_files = held_out_of(given)
    files = [prefix_of(prefix) for prefix in prefixes]
    check_arguments(files, held_files, "present", shard_tokens)
    known = read_imported_tokenizer(Path(tokenizer), end_of_text)
    for file in [*files, *held_files]:
        _check_type(open_megatron(file))
    with locked(folder):
        begin_folder(folder, known)
        work = _Link(folder, known, end_of_text, shard_tokens)
        for file in files:
            work.add(open_megatron(file), held_out, "train")
        for file in held_files:
            work.add(open_megatron(file), 0.0, "validation")
        corpus = {"format": "megatron, linked", "document_end": "present", "empty": work.empty}
        manifest = finish_folder(folder, known, work.writers, held_out, corpus, work.roots)
    notes = tuple(f"tokens stay in {root}; they must not change" for root in work.roots)
    return ImportReport.of("megatron, linked", folder, len(files) + len(held_files), manifest, notes, started)


def _check_type(file: TokenFile) -> None:
    if file.dtype not in (np.dtype("<u2"), np.dtype("<i4")):
        raise DataError(
            f"{file.path}: holds {file.dtype.name}, only uint16 and int32 are read in place; import the file, which converts it"
        )


class _Link:
    """A folder of links in the making."""

    def __init__(self, folder: Path, known: ImportedTokenizer, end_of_text: str, shard_tokens: int) -> None:
        self.known, self.end_of_text = known, end_of_text
        self.empty = 0
        self.roots: list[str] = []
        self.writers: dict[Split, LinkWriter] = {
            split: LinkWriter(folder, split, known.token_bytes, shard_tokens) for split in SPLITS
        }
        self._tokenizer_hash = hash_bytes(known.content.encode())
        self._config_hash = hash_bytes(f"link/{shard_tokens}".encode())
        self._files = 0

    def add(self, file: TokenFile, held_out: float, split: Split) -> None:
        """Describes a file's documents for a split, the held-out share at its end for validation."""
        origin = Origin(hash_file(file.index), self._tokenizer_hash, self._config_hash)
        for writer in self.writers.values():
            writer.begin(self._files, origin)
        cut = file.num_documents - _held_out(file.num_documents, held_out)
        start = int(file.ends_of(cut - 1, cut)[0]) if cut else 0
        self.writers[split].point_to(self._target(file, 0))
        if held_out:
            self.writers["validation"].point_to(self._target(file, start * file.dtype.itemsize))
        for batch in file.batches():
            check_batch(file, batch, self.known, "present", self.end_of_text)
            own = max(0, min(cut - batch.first, len(batch.lengths)))
            stop = int(batch.lengths[:own].sum())
            self._take(split, batch.tokens[:stop], batch.lengths[:own])
            self._take("validation", batch.tokens[stop:], batch.lengths[own:])
        for writer in self.writers.values():
            writer.flush()
        self._files += 1

    def _take(self, split: Split, tokens: np.ndarray, lengths: np.ndarray) -> None:
        self.empty += int((lengths == 0).sum())
        self.writers[split].add(tokens, lengths[lengths > 0])

    def _target(self, file: TokenFile, first_byte: int) -> Target:
        """Of the file that is really meant: a link is followed now, so that it cannot lead elsewhere later."""
        real = file.path.resolve()
        if str(real.parent) not in self.roots:
            self.roots.append(str(real.parent))
        size = file.num_tokens * file.dtype.itemsize
        return Target(self.roots.index(str(real.parent)), real.name, first_byte, size)


def _held_out(documents: int, share: float) -> int:
    """Documents at the end of a file: at least one, and not all."""
    if share == 0 or documents < 2:
        return 0
    return min(max(1, round(documents * share)), documents - 1)
