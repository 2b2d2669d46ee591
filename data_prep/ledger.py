"""The ledger: results of finished tasks, one small file each, named by the hash of all that they depend on.

A task writes its own record when it is done, so results never pass through the driver, and a run that is killed costs only the
tasks that were under way. A record is an uncompressed .npz: arrays as they are (JSON with hexadecimal digits took 20 times as
long), with a checksum each; one that is damaged counts as missing. Alternatives not taken: a database (locks on network file
systems), one growing file (many writers).
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.files import told_as_storage_error, write_atomically

_VALUES = "values"


@dataclass(frozen=True)
class Record:
    """What is kept of a task."""

    values: Mapping[str, Any]
    """Whatever JSON can hold."""
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Ledger:
    """Records in a folder, spread over 256 of them: a million in one is slow on network file systems."""

    folder: Path

    def find(self, key: str) -> Record | None:
        """The record under a key; None where there is none, or a damaged one. Raises StorageError."""
        path = self._path(key)
        try:
            with told_as_storage_error(path), np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            return Record(json.loads(arrays.pop(_VALUES).tobytes()), arrays)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def keep(self, key: str, values: Mapping[str, Any], **arrays: np.ndarray) -> None:
        """Keeps a record. Raises StorageError."""
        content = BytesIO()
        text = json.dumps(values, sort_keys=True).encode()
        np.savez(content, allow_pickle=False, **{_VALUES: np.frombuffer(text, np.uint8)}, **arrays)
        write_atomically(self._path(key), content.getvalue())

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"
