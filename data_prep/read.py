"""Reading: from a range of files to documents and pairs, and to what could not be read, with file, line and reason.

A source is a generator over one file part; `read_range` chains them. Nothing here stops at a bad document: it is handed on as
BadDocument, to be quarantined and counted. `datasets` is imported in this file alone, and only where a hub data set is asked
for; no remote code is ever run, and a revision is required.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.catalogues import BadCatalogue, read_catalogue
from data_prep.clean import bad_text, clean_pair, clean_text
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

PARQUET_BATCH_ROWS = 1024
LINE_BYTES_PER_DOCUMENT_BYTE = 8
"""How much longer than its longest text a row of .jsonl may be: escapes take up to six bytes a letter, other fields the rest."""


@dataclass(frozen=True)
class Part:
    """A file, or a piece of one."""

    path: str
    name: str
    """The file as users know it."""
    start: int
    """First byte (jsonl) or row group (parquet) of the piece."""
    stop: int
    size: int
    """Bytes of the piece."""
    modified_ns: int


@dataclass(frozen=True)
class FileRange:
    """What one task reads: about `task_bytes` of files, in a fixed order."""

    index: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(part.size for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """For hashing."""
        return asdict(self)


@dataclass(frozen=True)
class Document:
    """A text, or the two sides of a pair."""

    sides: tuple[str, ...]

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes."""
        return sum(len(side.encode()) for side in self.sides)


@dataclass(frozen=True)
class BadDocument:
    """Something that cannot be read as a document."""

    file: str
    line: int | None
    """1-based line or row; None where the whole file is meant."""
    reason: str


@dataclass(frozen=True)
class Dropped:
    """A readable document that is left out."""

    reason: str


Item = Document | BadDocument | Dropped
EMPTY = "empty"


def read_range(files: FileRange, prepare: PrepareSettings) -> Iterator[Item]:
    """All that a range holds, in a fixed order. Raises DataError, StorageError where a file is gone or may not be read."""
    for part in files.parts:
        try:
            with told_as_storage_error(part.path):
                yield from _SOURCES[prepare.sources["main"].source](part, prepare)
        except FileNotFoundError:
            raise DataError(f"{part.path}: gone since the corpus was listed; prepare again") from None


def _read_text(part: Part, prepare: PrepareSettings) -> Iterator[Item]:
    if part.size > prepare.max_document_bytes:
        yield BadDocument(part.name, None, _too_long(part.size, prepare))
        return
    content = Path(part.path).read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        yield BadDocument(part.name, None, f"not UTF-8: byte {error.start} is 0x{content[error.start]:02x}")
        return
    yield _document(text, part.name, None, prepare)


def _too_long(size: int, prepare: PrepareSettings) -> str:
    return f"{size:,} bytes, over max_document_bytes={prepare.max_document_bytes:,}"


def _document(text: str, file: str, line: int | None, prepare: PrepareSettings) -> Item:
    text = clean_text(text)
    if reason := bad_text(text):
        return BadDocument(file, line, reason)
    if not text.strip():
        return Dropped(EMPTY)
    document = Document((text,))
    if document.text_bytes > prepare.max_document_bytes:
        return BadDocument(file, line, _too_long(document.text_bytes, prepare))
    return document


def _pair(source: str, target: str, file: str, line: int | None, prepare: PrepareSettings) -> Item:
    for side in (source, target):
        if reason := bad_text(side):
            return BadDocument(file, line, reason)
    if not source.strip() or not target.strip():
        return Dropped(EMPTY)
    cleaned = clean_pair(source, target, prepare.pair_max_characters)
    return Dropped(cleaned) if isinstance(cleaned, str) else Document(cleaned)


def _read_catalogue(part: Part, prepare: PrepareSettings) -> Iterator[Item]:
    try:
        for source, target in read_catalogue(Path(part.path).read_bytes()):
            yield _pair(source, target, part.name, None, prepare)
    except BadCatalogue as error:
        yield BadDocument(part.name, None, str(error))


def _read_jsonl(part: Part, prepare: PrepareSettings) -> Iterator[Item]:
    """Lines that begin within the part; a compressed file is read whole."""
    if part.path.endswith(".gz"):
        yield from _read_compressed(part, prepare)
        return
    with Path(part.path).open("rb") as file:
        if part.start > 0:
            # A line that begins before the part belongs to the part before, and is skipped here up to its end.
            file.seek(part.start - 1)
            _skip_line(file)
        while (at := file.tell()) < part.stop:
            item = _row_of_line(_read_line(file, prepare), prepare)
            yield (
                BadDocument(part.name, _line_number(part.path, at), item.reason)
                if isinstance(item, BadDocument)
                else item
            )


def _read_compressed(part: Part, prepare: PrepareSettings) -> Iterator[Item]:
    number = 0
    try:
        with gzip.open(part.path) as file:
            while line := _read_line(file, prepare):
                number += 1
                item = _row_of_line(line, prepare)
                yield BadDocument(part.name, number, item.reason) if isinstance(item, BadDocument) else item
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        yield BadDocument(part.name, number + 1, f"damaged gzip file: {error}")


def _longest_line(prepare: PrepareSettings) -> int:
    return LINE_BYTES_PER_DOCUMENT_BYTE * prepare.max_document_bytes


def _read_line(file: BinaryIO | gzip.GzipFile, prepare: PrepareSettings) -> bytes:
    """The next line, or the start of one that is too long to be a row (a file without line ends must not fill the memory)."""
    line = file.readline(_longest_line(prepare) + 1)
    if len(line) > _longest_line(prepare) and not line.endswith(b"\n"):
        _skip_line(file)
    return line


def _skip_line(file: BinaryIO | gzip.GzipFile) -> None:
    while (piece := file.readline(1 << 20)) and not piece.endswith(b"\n"):
        pass


def _row_of_line(line: bytes, prepare: PrepareSettings) -> Item:
    if len(line) > _longest_line(prepare):
        return BadDocument("", None, f"a line of more than {_longest_line(prepare):,} bytes")
    if not line.strip():
        return Dropped(EMPTY)
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return BadDocument("", None, f"not UTF-8: byte {error.start} of the line is 0x{line[error.start]:02x}")
    except (ValueError, RecursionError) as error:
        return BadDocument("", None, f"not JSON: {error}")
    return _row(row, "", None, prepare)


def _line_number(path: str, offset: int) -> int:
    """1-based number of the line that begins at an offset; reads the file up to it, so for bad lines alone."""
    with Path(path).open("rb") as file:
        lines, left = 1, offset
        while left > 0 and (block := file.read(min(left, 1 << 22))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines


def _row(row: Any, file: str, line: int | None, prepare: PrepareSettings) -> Item:
    """The document or pair of one row."""
    corpus = prepare.sources["main"]
    names = (corpus.text_field,) if corpus.kind == "text" else (corpus.source_field or "", corpus.target_field or "")
    values = []
    for name in names:
        value = _field(row, name)
        if value is None:
            return BadDocument(file, line, f"no field {name!r}" if isinstance(row, Mapping) else "the row is no object")
        if not isinstance(value, str):
            return BadDocument(file, line, f"field {name!r} is {type(value).__name__}, not text")
        values.append(value)
    if corpus.kind == "text":
        return _document(values[0], file, line, prepare)
    return _pair(values[0], values[1], file, line, prepare)


def _field(row: Any, name: str) -> Any:
    """A field by its name, or by the dotted path to it."""
    if isinstance(row, Mapping) and name in row:
        return row[name]
    for key in name.split("."):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def _read_parquet(part: Part, prepare: PrepareSettings) -> Iterator[Item]:
    import pyarrow
    import pyarrow.parquet

    corpus = prepare.sources["main"]
    names = [corpus.text_field] if corpus.kind == "text" else [corpus.source_field or "", corpus.target_field or ""]
    try:
        with pyarrow.parquet.ParquetFile(part.path) as file:
            present = set(file.schema_arrow.names)
            columns = [name if name in present else name.split(".")[0] for name in names]
            if missing := [name for name in columns if name not in present]:
                raise DataError(f"{part.path}: no column {missing[0]!r}; it has {', '.join(sorted(present))}")
            first = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
            groups = list(range(part.start, part.stop))
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=groups, columns=sorted(set(columns))):
                for at, row in enumerate(batch.to_pylist()):
                    yield _row(row, part.name, first + at + 1, prepare)
                first += batch.num_rows
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        yield BadDocument(part.name, None, f"damaged row group {part.start}: {error}")


def parquet_row_groups(path: Path) -> list[int]:
    """Bytes of each row group of a file. Raises DataError where it is no parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        with told_as_storage_error(path), pyarrow.parquet.ParquetFile(path) as file:
            return [file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups)]
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from None


def download_hub(corpus: CorpusSettings, folder: Path) -> list[Path]:
    """A split of a hub data set as a parquet file under `folder`, downloaded once.

    Raises DataError where it has no pinned revision, cannot be fetched, or would need code of its own.
    """
    if not corpus.name or not corpus.revision:
        raise DataError(
            "prepare.corpus: source hub needs `name` and `revision` (a commit: without it a run cannot be repeated)"
        )
    stem = "-".join(
        part.replace("/", "--") for part in (corpus.name, corpus.subset or "", corpus.split, corpus.revision)
    )
    path = folder / f"{stem.strip('.')}.parquet"
    if path.exists():
        return [path]
    try:
        from datasets import Dataset, load_dataset
    except ImportError:
        raise DataError("prepare.corpus: source hub needs the `datasets` library: pip install datasets") from None
    try:
        data = load_dataset(corpus.name, corpus.subset, split=corpus.split, revision=corpus.revision)
    except Exception as error:  # the library raises many kinds, from ValueError to those of its network layer
        raise DataError(f"prepare.corpus: hub data set {corpus.name!r} cannot be loaded: {error}") from None
    assert isinstance(data, Dataset)
    partial = folder / f".{path.name}.partial"
    with told_as_storage_error(path):
        folder.mkdir(parents=True, exist_ok=True)
        data.to_parquet(partial)
        partial.replace(path)
    return [path]


_SOURCES: Mapping[str, Callable[[Part, PrepareSettings], Iterator[Item]]] = {
    "standard_library": _read_text,
    "text": _read_text,
    "jsonl": _read_jsonl,
    "parquet": _read_parquet,
    "hub": _read_parquet,
    "message_catalogues": _read_catalogue,
}
