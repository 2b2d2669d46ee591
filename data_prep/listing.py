"""The files that a config names, in an order that depends on their names alone: paths, folders, globs, here and in stores."""

# Strings, not paths: see _files_under.
# ruff: noqa: PTH109, PTH114, PTH116, PTH118
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

from data_prep.addresses import asked, filesystem, is_remote, local_path, redacted, refuse_secrets, shown
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

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
MAGIC = set("*?[")
"""Letters of a glob."""
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


def list_files(patterns: Sequence[str], source: str, setting: str) -> Iterator[Found]:
    """Files of paths, folders and globs, each once: in the order of the patterns, and by name within each.

    They come while folders are read: of one local folder no more is held than the names in it and in those above the file
    at hand. Several patterns, and globs, cost the paths of all files while they are listed.

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
    once = len(patterns) == 1 and not MAGIC & set(patterns[0])
    seen: set[str] = set()
    for pattern in patterns:
        count = 0
        try:
            for file in _remote_files(pattern, source) if is_remote(pattern) else _local_files(pattern, source):
                count += 1
                if file.path not in seen:
                    yield file
                if not once:
                    seen.add(file.path)
        except DataError as error:
            raise DataError(f"{setting}: {error}") from None
        if not count:
            suffixes = SUFFIXES[source]
            kind = f"no file that ends in {', '.join(suffixes)}" if suffixes else "no file"
            where = "" if is_remote(pattern) else f" (relative to {Path.cwd()})"
            raise DataError(f"{setting}: {redacted(pattern)!r} matches {kind}{where}")


def local_file(path: Path | str, name: str) -> Found:
    """A file of this machine. Raises StorageError."""
    with told_as_storage_error(path):
        status = os.stat(path)
    # A name that is not UTF-8 can be opened, but neither printed nor listed.
    told = os.fsencode(name).decode(errors="replace")
    return Found(os.path.join(os.getcwd(), path), told, status.st_size, str(status.st_mtime_ns))


def _local_files(pattern: str, source: str) -> Iterator[Found]:
    try:
        with told_as_storage_error(pattern):
            path = local_path(pattern)
            matches = [path] if path.exists() else _glob(path)
    except (ValueError, RuntimeError, OSError) as error:
        raise DataError(f"{pattern[:SHOWN_CHARACTERS]!r} is no path and no glob ({error}); correct it") from None
    for match in matches:
        if match.is_dir():
            for file in _files_under(str(match), SUFFIXES[source], set()):
                yield local_file(file, file)
        elif match.is_file():
            yield local_file(match, str(match))
        else:
            raise DataError(f"{str(match)!r} is neither a file nor a folder")


def _glob(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor)
    return sorted(root.glob(str(pattern.relative_to(root))))


def _files_under(folder: str, suffixes: tuple[str, ...] | None, entered: set[tuple[int, int]]) -> Iterator[str]:
    """As sorted paths would be, `a/z` before `a.b`. Links are followed, into each folder once (`entered`).

    pathlib's own search passes over linked and unreadable folders without a word, and their documents would be missing from the
    corpus. Strings: Python keeps a table of the names in all paths of pathlib, 50 bytes and more a file.

    Raises DataError for a link to nothing, StorageError.
    """
    with told_as_storage_error(folder):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            names = sorted(
                entry.name
                for entry in entries
                if not entry.name.startswith(".")
                and (suffixes is None or entry.name.endswith(suffixes) or entry.is_dir())
            )
    for path in (name if folder == "." else os.path.join(folder, name) for name in names):
        mode = _mode(path)
        if S_ISDIR(mode):
            yield from _files_under(path, suffixes, entered)
        elif S_ISREG(mode):  # no pipe or device
            yield path


def _mode(path: str) -> int:
    """Of what a path leads to; 0 where it is gone meanwhile. Raises DataError for a link to nothing, StorageError."""
    with told_as_storage_error(path):
        try:
            return os.stat(path).st_mode
        except FileNotFoundError:
            if os.path.islink(path):
                raise DataError(f"{path!r} is a link to nothing; mend or remove it") from None
            return 0


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
