"""Writing a safetensors file as a stream that is hashed on its way to the disk.

The format is a length (8 bytes, little-endian), a JSON header, and the raw bytes of the tensors one after another; any
safetensors reader opens it. Not taken: `safetensors.torch.save_file`, which wants all tensors on the CPU at once and
would have its file read a second time for the hash.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import xxhash

_ALIGNMENT = 8


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, before its bytes."""

    key: str
    dtype: str
    """As safetensors spells it, `F32`."""
    shape: tuple[int, ...]
    num_bytes: int


@dataclass(frozen=True)
class WrittenFile:
    """Size and hash of what was handed to the disk; what lies there is compared with it later."""

    size: int
    hash: str


class HashedFile:
    """A new file whose content is hashed while it is written, and on the disk (fsync) when the context ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = xxhash.xxh3_128()
        self._size = 0
        self._file: BinaryIO

    def __enter__(self) -> "HashedFile":
        self._file = self._path.open("xb", buffering=0)
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Writes all of a buffer; a raw file may take less than it is given."""
        rest = memoryview(data).cast("B")
        self._state.update(rest)
        self._size += len(rest)
        while rest:
            rest = rest[self._file.write(rest) :]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    @property
    def written(self) -> WrittenFile:
        """Size and hash so far."""
        return WrittenFile(self._size, self._state.hexdigest())


def write_tensors(path: Path, entries: Sequence[TensorEntry], contents: Iterable[memoryview]) -> WrittenFile:
    """Writes a new safetensors file; `contents` are the tensors' bytes in the order of `entries`, taken one at a time.

    Raises OSError where the disk refuses.
    """
    header: dict[str, object] = {}
    offset = 0
    for entry in entries:
        assert entry.key not in header, f"two tensors are called {entry.key}"
        offsets = [offset, offset + entry.num_bytes]
        header[entry.key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        offset += entry.num_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with HashedFile(path) as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for entry, content in zip(entries, contents, strict=True):
            assert memoryview(content).nbytes == entry.num_bytes, f"{entry.key} has another size than announced"
            file.write(content)
    return file.written


def write_bytes(path: Path, content: bytes) -> WrittenFile:
    """Writes a new file, hashed and on the disk. Raises OSError where the disk refuses."""
    with HashedFile(path) as file:
        file.write(content)
    return file.written
