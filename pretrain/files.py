"""Files that survive a crash, hashes that find damage, and paths that cannot leave their folder.

`write_atomically` is the way in which every small file of a run is written: a reader sees the old content or the new, never a
part. It writes beside the target and renames, so it needs a file system with an atomic rename (every local one, NFS, Lustre);
object stores are not served by it. Cost: two fsyncs, some milliseconds each on a disk.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash

from pretrain.errors import StorageError

HASH_BLOCK_BYTES = 4 << 20

_CAUSES = {
    ENOSPC: "no space is left on the disk: free some, or choose another folder",
    EDQUOT: "the disk quota is used up: free some space, or choose another folder",
    EACCES: "permission denied: make it accessible to this user, or choose another folder",
    EPERM: "operation not permitted: make it accessible to this user, or choose another folder",
    EROFS: "the file system is read-only: choose another folder",
}


def storage_error(error: OSError, path: str | Path | None = None) -> StorageError | None:
    """The readable form of a full disk or a missing permission; None for any other error of the operating system."""
    cause = _CAUSES.get(error.errno or 0)
    where = path or error.filename2 or error.filename or "a file of the run"
    return StorageError(f"{where}: {cause}") if cause else None


@contextmanager
def told_as_storage_error(path: str | Path) -> Iterator[None]:
    """Within it, a full disk or a missing permission is raised as StorageError with the path."""
    try:
        yield
    except OSError as error:
        told = storage_error(error, path)
        if told is None:
            raise
        raise told from error


def sync_folder(folder: Path) -> None:
    """Makes names created in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, content: str | bytes | bytearray) -> None:
    """Writes a file so that it is there whole or not at all. Its folder is made where it is missing.

    Raises StorageError for a full disk or a missing permission.
    """
    data = content.encode() if isinstance(content, str) else content
    with told_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _umask() -> int:
    """The process's file mask; it can only be read by setting it, except where Linux shows it."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("Umask:"))
    except (OSError, StopIteration):
        return 0o022
    return int(line.split()[1], 8)


def append_json_line(path: Path, row: dict[str, Any]) -> None:
    """Appends one object to a .jsonl file in a single write, so that two writers cannot mix within a line.

    Raises StorageError for a full disk or a missing permission.
    """
    line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
    with told_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line.encode())
            os.fsync(handle)
        finally:
            os.close(handle)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; none where it is missing. A last line that a crash cut short is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for index, line in enumerate(lines):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if index < len(lines) - 1:
                raise StorageError(f"{path}, line {index + 1}: not JSON; remove the line") from None
    return rows


def hash_bytes(data: bytes | bytearray | memoryview) -> str:
    """XXH3-128 of a buffer, 32 hexadecimal digits. It finds damage; it is no defence against an attacker."""
    return xxhash.xxh3_128_hexdigest(data)


def hash_file(path: Path) -> str:
    """XXH3-128 of a file's content, read in blocks. Raises OSError where it cannot be read."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            state.update(block)
    return state.hexdigest()


def path_within(root: Path, relative: str) -> Path:
    """The path of a name that a manifest gives, which must stay under `root`.

    Raises ValueError for a name that is absolute, climbs out by `..` or a link, or holds a NUL.
    """
    name = PurePosixPath(relative)
    if not relative or "\0" in relative or name.is_absolute() or ".." in name.parts:
        raise ValueError(f"{relative!r} is not a plain relative path")
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{relative!r} leaves {root} by a link")
    return path
