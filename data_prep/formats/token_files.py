"""Token files of other projects, seen as one thing: raw tokens beside an index of where documents end.

A reader checks the whole index when it opens a file and is then a `TokenFile`; what copies or links it knows no format. The
index is memory-mapped; tokens are read in batches and not mapped, since a map of a file that someone cuts meanwhile ends the
process (SIGBUS), and its pages would count as memory of ours. Cost: one copy at memory speed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

BATCH_TOKENS = 1 << 22
BATCH_DOCUMENTS = 1 << 16
CHECK_ENTRIES = 1 << 20
"""Entries of an index that are looked at together."""


@dataclass(frozen=True)
class Batch:
    """Some documents of a file, one after another."""

    first: int
    """Number of the first one within the file."""
    tokens: np.ndarray
    """(T,) of the documents, in the file's own type."""
    lengths: np.ndarray
    """(N,) int64; 0 for an empty document."""


@dataclass(frozen=True)
class TokenFile:
    """A file whose index has been checked."""

    path: Path
    """Holds the tokens and nothing else."""
    index: Path
    dtype: np.dtype
    num_tokens: int
    num_documents: int
    ends_of: Callable[[int, int], np.ndarray]
    """(first, last) -> (last - first,) int64: the end, in tokens, of each of these documents."""
    notes: tuple[str, ...] = ()
    """What of the file is left out."""

    def batches(self) -> Iterator[Batch]:
        """The documents in batches of about BATCH_TOKENS; a longer document is a batch. Raises DataError, StorageError."""
        first = start = 0
        while first < self.num_documents:
            ends = self.ends_of(first, min(first + BATCH_DOCUMENTS, self.num_documents))
            count = max(1, int(ends.searchsorted(start + BATCH_TOKENS, side="right")))
            ends, stop = ends[:count], int(ends[count - 1])
            yield Batch(first, self.read(start, stop), np.diff(ends, prepend=start))
            first, start = first + count, stop

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) tokens. Raises DataError where the file was cut since it was opened, StorageError."""
        with readable(self.path):
            tokens = np.fromfile(self.path, self.dtype, stop - start, offset=start * self.dtype.itemsize)
        if len(tokens) != stop - start:
            raise damaged(self.path, "it was cut while it was being read")
        return tokens

    def last_tokens(self) -> Iterator[np.ndarray]:
        """The last token of every document that is not empty, in batches."""
        for batch in self.batches():
            lengths = batch.lengths[batch.lengths > 0]
            yield batch.tokens[np.cumsum(lengths) - 1]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Within it, a file that cannot be read is told as DataError or StorageError."""
    try:
        with told_as_storage_error(path):
            yield
    except FileNotFoundError:
        raise DataError(f"{path}: not found; give the name of an existing file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a plain file") from None


def map_bytes(path: Path) -> np.ndarray:
    """(B,) uint8, read-only: a file mapped into memory. Raises DataError, StorageError."""
    with readable(path):
        if path.stat().st_size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(path, np.uint8, "r")


def file_bytes(path: Path) -> int:
    """Size of a file. Raises DataError, StorageError."""
    with readable(path), path.open("rb") as file:
        return file.seek(0, 2)


def damaged(path: Path, what: str) -> DataError:
    """What is told of a file that breaks its format."""
    return DataError(f"{path}: damaged: {what}; copy the file again from where it was made, or make it anew")
