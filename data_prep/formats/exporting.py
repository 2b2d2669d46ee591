"""What every export shares: the split as blocks of tokens and of lengths, and files that appear whole or not at all.

Files are written beside their names and renamed when all are complete, the tokens first and the index after them, so that
no reader finds an index without its tokens. Every block is held against its checksum on the way.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_prep.formats.token_files import BATCH_TOKENS
from pretrain.data.manifest import Split
from pretrain.data.token_shards import TokenShards
from pretrain.errors import DataError
from pretrain.files import sync_folder, told_as_storage_error


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote."""

    format: str
    files: tuple[Path, ...]
    split: Split
    tokens: int
    documents: int
    dtype: str

    def summary(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "files": [str(file) for file in self.files]}

    def lines(self) -> list[str]:
        """The report for people."""
        head = f"{self.split}: {self.tokens:,} tokens of {self.documents:,} documents as {self.format}, {self.dtype}"
        return [head, *(f"  {file}" for file in self.files)]


def opened(folder: str | Path, split: Split) -> TokenShards:
    """A split to export. Raises DataError where it is empty."""
    shards = TokenShards.open(folder, split, "read")
    if shards.num_documents == 0:
        raise DataError(f"{folder}: holds no document of {split}; name the other split")
    return shards


def token_blocks(shards: TokenShards) -> Iterator[np.ndarray]:
    """The stream in blocks, checked. Raises DataError for damage."""
    for index in range(shards.num_shards):
        total = shards.shard(index).layout.tokens
        for start in range(0, total, BATCH_TOKENS):
            yield shards.shard(index).read(start, min(start + BATCH_TOKENS, total))
        shards.let_go(index)


def document_lengths(shards: TokenShards) -> Iterator[np.ndarray]:
    """(N,) int64 tokens of each document, shard after shard; none is empty."""
    for index in range(shards.num_shards):
        lengths = shards.shard(index).lengths().astype(np.int64)
        shards.let_go(index)
        if len(lengths):
            yield lengths


def check_sizes(shards: TokenShards, most: int, what: str) -> None:
    """Raises DataError where a document has more tokens than a format can say."""
    first = 0
    for lengths in document_lengths(shards):
        if int(lengths.max()) > most:
            raise DataError(
                f"{shards.folder}: document {first + int(lengths.argmax()):,} of {shards.split} has "
                f"{int(lengths.max()):,} tokens, {what} holds at most {most:,}; prepare it in smaller documents"
            )
        first += len(lengths)


@contextmanager
def outputs(*paths: Path) -> Iterator[list[IO[bytes]]]:
    """Files that appear together, when the block ends without an error; the first to appear is the first named.

    Raises DataError where one of the names is taken, StorageError.
    """
    for path in paths:
        if path.exists():
            raise DataError(f"{path}: exists; delete it, or give another name")
    with told_as_storage_error(paths[0]), ExitStack() as stack:
        files: dict[Path, IO[bytes]] = {}
        for path in paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError):
                raise DataError(f"{path}: {path.parent} is not a folder; give another name") from None
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            stack.callback(temporary.unlink, missing_ok=True)
            files[temporary] = stack.enter_context(temporary.open("wb"))
        yield list(files.values())
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
        for temporary, path in zip(files, paths, strict=True):
            temporary.replace(path)
            sync_folder(path.parent)
