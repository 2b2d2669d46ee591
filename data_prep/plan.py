"""The plan of a preparation: which files, cut into fixed ranges, one task each.

Ranges depend on the corpus and on `task_bytes` alone, never on the number of workers; tasks write their own shards, and shards
are put together in the order of the ranges. So the output is the same, byte for byte, whoever did the work.
"""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_prep.packages import fetch_catalogues
from data_prep.read import FileRange, Part, download_hub, parquet_row_groups
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

SUFFIXES = {
    "text": None,
    "jsonl": (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    "parquet": (".parquet",),
    "message_catalogues": (".mo",),
}
"""What is taken from a folder; None: every file. A file that is named is taken whatever its suffix."""


def plan_ranges(corpus: CorpusSettings, folder: Path, task_bytes: int) -> list[FileRange]:
    """Lists the corpus and cuts it into ranges; packages and hub data sets are fetched into `folder` first.

    Raises:
        DataError: nothing is there, a name matches nothing, or a source cannot be fetched.
        StorageError: a file that may not be read.
    """
    parts = list(_parts(corpus, folder, task_bytes))
    if not any(part.size for part in parts):
        raise DataError(f"prepare.corpus: {_describe(corpus)} holds no text: no file, or empty files alone")
    ranges: list[FileRange] = []
    current: list[Part] = []
    size = 0
    for part in parts:
        if current and size + part.size > task_bytes:
            ranges.append(FileRange(len(ranges), tuple(current)))
            current, size = [], 0
        current.append(part)
        size += part.size
    return [*ranges, FileRange(len(ranges), tuple(current))]


def _describe(corpus: CorpusSettings) -> str:
    where = corpus.name or ", ".join((*corpus.paths, *corpus.packages))
    return f"source {corpus.source}" + (f" ({where})" if where else "")


def _parts(corpus: CorpusSettings, folder: Path, task_bytes: int) -> Iterator[Part]:
    if corpus.source == "standard_library":
        yield from _standard_library()
    elif corpus.source == "hub":
        yield from _pieces(download_hub(corpus, folder), "parquet", task_bytes)
    elif corpus.source == "message_catalogues":
        found = fetch_catalogues(corpus.packages, corpus.target_language, folder) if corpus.packages else []
        yield from (_whole(path, str(path.relative_to(folder))) for path in found)
        if corpus.paths or not corpus.packages:
            named = _files(corpus)
            yield from (_whole(path, str(path)) for path in named if _of_language(path, corpus))
    elif corpus.source == "text":
        yield from (_whole(path, str(path)) for path in _files(corpus))
    else:
        yield from _pieces(_files(corpus), corpus.source, task_bytes)


def _standard_library() -> Iterator[Part]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not {"site-packages", "dist-packages"} & set(relative.parts):
            yield _whole(path, str(relative))


def _files(corpus: CorpusSettings) -> list[Path]:
    """Files of `paths`, each once, in a fixed order."""
    if not corpus.paths:
        raise DataError(f"prepare.corpus.paths: source {corpus.source} needs at least one file, folder or glob")
    found: dict[Path, None] = {}
    for pattern in corpus.paths:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else _matches(path)
        files = [file for match in matches for file in _files_under(match, corpus.source)]
        if not files:
            suffixes = SUFFIXES[corpus.source]
            kind = f"no file that ends in {', '.join(suffixes)}" if suffixes else "no file"
            raise DataError(f"prepare.corpus.paths: {pattern!r} matches {kind} (relative to {Path.cwd()})")
        found.update(dict.fromkeys(files))
    return list(found)


def _matches(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor)
    relative = str(pattern.relative_to(root))
    return sorted(root.glob(relative))


def _files_under(path: Path, source: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    suffixes = SUFFIXES[source]
    with told_as_storage_error(path):
        return sorted(
            file
            for file in path.rglob("*")
            if file.is_file() and not file.name.startswith(".") and (suffixes is None or file.name.endswith(suffixes))
        )


def _of_language(path: Path, corpus: CorpusSettings) -> bool:
    """A catalogue in a tree of languages counts where it is of the target language; one that is elsewhere always."""
    return path.parent.name != "LC_MESSAGES" or path.parent.parent.name == corpus.target_language


def _whole(path: Path, name: str) -> Part:
    with told_as_storage_error(path):
        status = path.stat()
    # A name that is not UTF-8 can be opened, but neither printed nor listed.
    told = os.fsencode(name).decode(errors="replace")
    return Part(str(path.absolute()), told, 0, status.st_size, status.st_size, status.st_mtime_ns)


def _pieces(files: list[Path], source: str, task_bytes: int) -> Iterator[Part]:
    """Pieces of files of rows: bytes of .jsonl, row groups of .parquet; a compressed file is one piece."""
    for path in files:
        whole = _whole(path, str(path))
        if source == "parquet":
            for group, size in enumerate(parquet_row_groups(path)):
                yield Part(whole.path, whole.name, group, group + 1, size, whole.modified_ns)
        elif path.suffix == ".gz":
            yield whole
        else:
            for start in range(0, whole.size, task_bytes):
                stop = min(start + task_bytes, whole.size)
                yield Part(whole.path, whole.name, start, stop, stop - start, whole.modified_ns)
