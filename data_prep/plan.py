"""The plan of a preparation: which files, cut into fixed ranges, one task each.

Ranges depend on the corpus and on `task_bytes` alone, never on the number of workers; tasks write their own shards, and shards
are put together in the order of the ranges. So the output is the same, byte for byte, whoever did the work.
"""

import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.addresses import is_remote
from data_prep.aligned import aligned_parts
from data_prep.items import FileRange, Part
from data_prep.listing import Found, list_files, local_file
from data_prep.packages import fetch_catalogues
from data_prep.streams import is_compressed
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.errors import DataError

REQUESTS_AT_ONCE = 16
"""Footers of parquet files in a store that are asked for at the same time."""


def plan_ranges(
    corpus: CorpusSettings, folder: Path, task_bytes: int, source: str = "main", first_index: int = 0
) -> list[FileRange]:
    """Lists the corpus and cuts it into ranges; packages and hub data sets are fetched into `folder` first.

    Args:
        corpus: what is listed.
        folder: for what is fetched.
        task_bytes: of a range; a file that cannot be cut may be larger.
        source: the corpus's name among several; `main` where it is the only one.
        first_index: number of the first range.

    Raises:
        DataError: nothing is there, a name matches nothing, or a source cannot be fetched.
        StorageError: a file that may not be read.
    """
    setting = "data.prepare.corpus" if source == "main" else f"data.prepare.corpora.{source}"
    if (corpus.source_field is None) != (corpus.target_field is None):
        raise DataError(f"{setting}: source_field and target_field are set together (pairs) or not at all (text)")
    ranges: list[FileRange] = []
    for parts in _groups(_parts(corpus, folder, task_bytes, setting), task_bytes):
        ranges.append(FileRange.of(first_index + len(ranges), parts, source))
    if not any(files.size for files in ranges):
        raise DataError(f"{setting}: {_describe(corpus)} holds no text: no file, or empty files alone")
    return ranges


def _groups(parts: Iterable[Part], task_bytes: int) -> Iterator[list[Part]]:
    """Neighbours of `task_bytes` at most, or one that is larger."""
    group: list[Part] = []
    size = 0
    for part in parts:
        if group and size + part.size > task_bytes:
            yield group
            group, size = [], 0
        group.append(part)
        size += part.size
    if group:
        yield group


def _describe(corpus: CorpusSettings) -> str:
    where = corpus.name or ", ".join((*corpus.paths, *corpus.packages))
    return f"source {corpus.source}" + (f" ({where})" if where else "")


def _parts(corpus: CorpusSettings, folder: Path, task_bytes: int, setting: str) -> Iterator[Part]:
    if corpus.source == "standard_library":
        yield from _standard_library()
    elif corpus.source == "hub":
        from data_prep.hub import hub_files  # see _all_row_groups

        copies = [local_file(path, str(path)) for path in hub_files(corpus, folder, setting)]
        yield from _row_groups(copies, corpus, task_bytes)
    elif corpus.source == "message_catalogues":
        yield from _catalogues(corpus, folder, setting)
    else:
        files = list_files(corpus.paths, corpus.source, f"{setting}.paths")
        if corpus.source == "text":
            yield from (_piece(file, 0, file.size, file.size) for file in files)
        elif corpus.source == "jsonl":
            yield from (part for file in files for part in _bytes(file, task_bytes))
        elif corpus.source == "parquet":
            yield from _row_groups(list(files), corpus, task_bytes)
        else:
            targets = list_files(corpus.target_paths, corpus.source, f"{setting}.target_paths")
            yield from aligned_parts(list(files), list(targets), task_bytes, setting)


def _standard_library() -> Iterator[Part]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not {"site-packages", "dist-packages"} & set(relative.parts):
            yield _whole(local_file(path, str(relative)))


def _catalogues(corpus: CorpusSettings, folder: Path, setting: str) -> Iterator[Part]:
    found = fetch_catalogues(corpus.packages, corpus.target_language, folder) if corpus.packages else []
    yield from (_whole(local_file(path, str(path.relative_to(folder)))) for path in found)
    if corpus.paths or not corpus.packages:
        named = list_files(corpus.paths, corpus.source, f"{setting}.paths")
        yield from (_whole(file) for file in named if _of_language(file.path, corpus))


def _of_language(path: str, corpus: CorpusSettings) -> bool:
    """A catalogue in a tree of languages counts where it is of the target language; one that is elsewhere always."""
    folders = path.split("/")[:-1]
    return folders[-1:] != ["LC_MESSAGES"] or folders[-2:-1] == [corpus.target_language]


def _piece(file: Found, start: int, stop: int, size: int) -> Part:
    return Part(file.path, file.name, start, stop, size, file.size, file.version)


def _whole(file: Found) -> Part:
    return _piece(file, 0, file.size, file.size)


def _bytes(file: Found, task_bytes: int) -> Iterator[Part]:
    """Pieces of lines; a compressed file is one."""
    if is_compressed(file.path):
        yield _whole(file)
        return
    for start in range(0, file.size, task_bytes):
        stop = min(start + task_bytes, file.size)
        yield _piece(file, start, stop, stop - start)


def _row_groups(files: Sequence[Found], corpus: CorpusSettings, task_bytes: int) -> Iterator[Part]:
    """Pieces of whole row groups, as many as a task takes: every piece costs a reading of the file's footer."""
    for file, sizes in zip(files, _all_row_groups(files, corpus), strict=True):
        start = size = 0
        for group, group_bytes in enumerate(sizes):
            if group > start and size + group_bytes > task_bytes:
                yield _piece(file, start, group, size)
                start, size = group, 0
            size += group_bytes
        if sizes:
            yield _piece(file, start, len(sizes), size)


def _all_row_groups(files: Sequence[Found], corpus: CorpusSettings) -> Iterable[list[int]]:
    from data_prep.columns import row_group_bytes  # pyarrow takes 0.3 s to load, and most corpora are not parquet

    def sizes(file: Found) -> list[int]:
        return row_group_bytes(file.path, file.name, file.size, corpus)

    if not any(is_remote(file.path) for file in files):
        return map(sizes, files)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as requests:
        return list(requests.map(sizes, files))
