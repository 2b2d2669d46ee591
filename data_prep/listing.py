"""The files that a config names, in an order that depends on their names alone: paths, folders, globs, here and in stores."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from data_prep.addresses import asked, filesystem, is_remote, local_path, redacted, refuse_secrets, shown
from pretrain.errors import DataError
from pretrain.files import storage_error, told_as_storage_error

COMPRESSED_LINES = tuple(kind + suffix for kind in (".jsonl", ".ndjson") for suffix in ("", ".gz", ".zst"))
SUFFIXES: Mapping[str, tuple[str, ...] | None] = {
    "text": None,
    "aligned_text": None,
    "jsonl": COMPRESSED_LINES,
    "parquet": (".parquet",),
    "message_catalogues": (".mo",),
}
"""What is taken from a folder; None: every file. A file that is named is taken whatever its suffix."""
SHOWN_CHARACTERS = 200
"""Of a pattern that is none, in messages."""
TAGS = ("ETag", "etag", "md5Hash", "md5", "generation", "Content-MD5", "Digest")
TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


@dataclass(frozen=True, slots=True)
class Found:
    """A file of the corpus."""

    path: str
    """Absolute, or an address."""
    name: str
    """As users know it, free of secrets."""
    size: int
    version: str
    """Time of modification, or the store's tag."""


def list_files(patterns: Sequence[str], source: str, setting: str) -> list[Found]:
    """Files of paths, folders and globs, each once: in the order of the patterns, and by name within each.

    Args:
        patterns: paths or addresses.
        source: of CorpusSettings; says which files of a folder count.
        setting: the config's name for the patterns, for messages.

    Raises:
        DataError: a pattern that matches nothing, a client that is not installed, a password in an address.
        StorageError: a folder that may not be read, a store that does not answer.
    """
    if not patterns:
        raise DataError(f"{setting}: source {source} needs at least one file, folder or glob")
    found: dict[str, Found] = {}
    for pattern in patterns:
        try:
            matches = list(_remote_files(pattern, source) if is_remote(pattern) else _local_files(pattern, source))
        except DataError as error:
            raise DataError(f"{setting}: {error}") from None
        if not matches:
            suffixes = SUFFIXES[source]
            kind = f"no file that ends in {', '.join(suffixes)}" if suffixes else "no file"
            where = "" if is_remote(pattern) else f" (relative to {Path.cwd()})"
            raise DataError(f"{setting}: {redacted(pattern)!r} matches {kind}{where}")
        for file in matches:
            found.setdefault(file.path, file)
    return list(found.values())


def local_file(path: Path, name: str) -> Found:
    """A file of this machine. Raises StorageError."""
    with told_as_storage_error(path):
        status = path.stat()
    # A name that is not UTF-8 can be opened, but neither printed nor listed.
    told = os.fsencode(name).decode(errors="replace")
    return Found(str(path.absolute()), told, status.st_size, str(status.st_mtime_ns))


def _local_files(pattern: str, source: str) -> Iterator[Found]:
    try:
        with told_as_storage_error(pattern):
            path = local_path(pattern)
            matches = [path] if path.exists() else _glob(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{pattern[:SHOWN_CHARACTERS]!r} is no path and no glob ({error}); correct it") from None
    for match in matches:
        for file in _files_under(match, source):
            if not file.is_file():
                raise DataError(f"{str(file)!r} is neither a file nor a folder")
            yield local_file(file, str(file))


def _glob(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor)
    return sorted(root.glob(str(pattern.relative_to(root))))


def _files_under(path: Path, source: str) -> list[Path]:
    """A file itself, or the files of a folder. Links are followed, into each folder once; pathlib's own search passes over linked
    and unreadable folders without a word, and their documents would be missing from the corpus."""
    with told_as_storage_error(path):
        if not path.is_dir():
            return [path]
    found: list[Path] = []
    entered: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(path, onerror=_refuse_unreadable, followlinks=True):
        status = Path(folder).stat()
        place = status.st_dev, status.st_ino
        folders[:] = [] if place in entered else sorted(name for name in folders if not name.startswith("."))
        if place not in entered:
            found += [file for name in names if _counts(name, source) and _is_readable(file := Path(folder, name))]
        entered.add(place)
    return sorted(found)


def _refuse_unreadable(error: OSError) -> None:
    raise storage_error(error) or error


def _is_readable(file: Path) -> bool:
    """Whether it is a file, not a pipe or a device. Raises DataError for a link to nothing, StorageError."""
    with told_as_storage_error(file):
        if file.is_symlink() and not file.exists():
            raise DataError(f"{str(file)!r} is a link to nothing; mend or remove it")
        return file.is_file()


def _counts(relative: str, source: str) -> bool:
    """Whether a file of a folder is taken, by its path in it: hidden ones are not."""
    suffixes = SUFFIXES[source]
    hidden = any(name.startswith(".") for name in relative.split("/"))
    return not hidden and (suffixes is None or relative.endswith(suffixes))


def _remote_files(address: str, source: str) -> Iterator[Found]:
    refuse_secrets(address)
    store, path = filesystem(address)
    magic = "*[" if address.startswith("http") else "*?["  # a question mark begins the query of a URL
    store.invalidate_cache()

    def ask(request: Callable[[], Any]) -> Any:
        try:
            return asked(address, "listed", request)
        except FileNotFoundError:
            return {}

    if any(letter in path for letter in magic):
        matches = ask(lambda: store.glob(path, detail=True))
    else:
        info = ask(lambda: store.info(path))
        matches = {path: info} if info else {}
    for name in sorted(matches, key=_by_parts):
        if matches[name].get("type") != "directory":
            yield _remote_file(store, name, matches[name])
            continue
        inside = ask(lambda folder=name: store.find(folder, detail=True))
        for file in sorted(inside, key=_by_parts):
            if _counts(file.removeprefix(name).lstrip("/"), source):
                yield _remote_file(store, file, inside[file])


def _by_parts(name: str) -> list[str]:
    """As paths are ordered: `a/z` before `a.b`."""
    return name.split("/")


def _remote_file(store: Any, path: str, info: Mapping[str, Any]) -> Found:
    address = store.unstrip_protocol(path)
    if info.get("size") is None:
        raise DataError(f"{redacted(address)!r}: the server does not tell its size; download it first")
    return Found(address, shown(address), int(info["size"]), _version(info))


def _version(info: Mapping[str, Any]) -> str:
    """What changes with the content; the store's tag where it has one."""
    value = next((info[key] for key in (*TAGS, *TIMES) if info.get(key) not in (None, "")), "unknown")
    # Stores tell a time as a date in one answer, as seconds in another.
    value = value.timestamp() if isinstance(value, datetime) else value
    return f"{value:.6f}" if isinstance(value, float) else str(value)
