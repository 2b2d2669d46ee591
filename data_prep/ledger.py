"""The ledger: results of finished tasks, one small file each, named by the hash of all that they depend on.

A task writes its own record when it is done, so results never pass through the driver, and a run that is killed costs only the
tasks that were under way. A record is an uncompressed .npz: arrays as they are (JSON with hexadecimal digits took 20 times as
long), with a checksum each, read when they are asked for. One that is cut short or illegible counts as missing; damage that shows
later removes it, so that the next run makes it again. Alternatives not taken: a database (locks on network file
systems), one growing file (many writers).
"""

import errno
import json
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.errors import DataError
from pretrain.files import told_as_storage_error, write_atomically

_VALUES = "values"
_DAMAGE = (ValueError, KeyError, EOFError, zipfile.BadZipFile, RuntimeError, struct.error)
"""What numpy and zipfile raise for flipped bits; RuntimeError where one says that a member is encrypted or packed."""


@dataclass(frozen=True)
class Record:
    """What is kept of a task."""

    values: Mapping[str, Any]
    """Whatever JSON can hold."""
    arrays: Mapping[str, np.ndarray]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Raises one of _DAMAGE for a file that is no record, FileNotFoundError, StorageError."""
    try:
        with told_as_storage_error(path), np.load(path, allow_pickle=False) as file:
            yield file
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("it points outside itself") from error  # a place before the beginning of the file


def _array(file: Any, name: str) -> np.ndarray:
    array = file[name]
    if not isinstance(array, np.ndarray):  # numpy hands over the bytes of a member that does not begin as an array does
        raise ValueError(f"{name} is no array")
    return array


class _Arrays(Mapping[str, np.ndarray]):
    """Of a file, each read when it is asked for."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self._path, self._names = path, names

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            with _opened(self._path) as file:
                return _array(file, name)
        except (*_DAMAGE, FileNotFoundError) as error:
            self._path.unlink(missing_ok=True)
            raise DataError(
                f"{self._path}: a damaged record of a finished task ({error}); it was removed, run `pretrain prepare` again"
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Ledger:
    """Records in a folder, spread over 256 of them: a million in one is slow on network file systems."""

    folder: Path

    def find(self, key: str) -> Record | None:
        """The record under a key; None where there is none, or a damaged one. Raises StorageError."""
        path = self._path(key)
        try:
            with _opened(path) as file:
                values = json.loads(_array(file, _VALUES).tobytes())
                return Record(values, _Arrays(path, [name for name in file.files if name != _VALUES]))
        except FileNotFoundError:
            return None
        except _DAMAGE:
            return None

    def keep(self, key: str, values: Mapping[str, Any], **arrays: np.ndarray) -> None:
        """Keeps a record. Raises StorageError."""
        content = BytesIO()
        text = json.dumps(values, sort_keys=True).encode()
        np.savez(content, allow_pickle=False, **{_VALUES: np.frombuffer(text, np.uint8)}, **arrays)
        write_atomically(self._path(key), content.getvalue())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"
