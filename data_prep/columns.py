"""Rows of parquet, row group by row group; the columns that are asked for alone are read.

Pages are streamed and their checksums verified where the writer left any. A row group that cannot be read to its end is one bad
document that names the rows that were lost; those before the damage, and the other groups, are kept.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow.parquet import FileMetaData, ParquetFile

from data_prep.addresses import RangedFile, is_remote, redacted
from data_prep.items import BadDocument, Item, Part
from data_prep.rows import Undecodable, values_maker
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

BATCH_ROWS = 1024
BATCH_BYTES = 4 << 20
"""Text that is decoded at once, by the average row of the group."""
PAGE_BUFFER_BYTES = 1 << 20
REMOTE_BUFFER_BYTES = 4 << 20


def read_parquet(part: Part, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    """Rows of the part's row groups. Raises DataError for a column that is not there, FileNotFoundError, StorageError."""
    make = values_maker(corpus, prepare)
    with _open(part.path, part.name, part.file_bytes) as file:
        columns = [_Column(file.schema_arrow, name, part.name) for name in corpus.fields]
        first = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
        for group in range(part.start, part.stop):
            last, row = first + file.metadata.row_group(group).num_rows, first
            try:
                for values in _rows(file, group, columns):
                    row += 1
                    made = make(*values)
                    yield BadDocument(part.name, row, made) if isinstance(made, str) else made
                problem = None if row == last else "it ends early"
            except _DamagedGroup as error:
                problem = str(error)
            if problem is not None:
                lost = f"rows {row + 1:,} to {last:,} are lost"
                yield BadDocument(part.name, row + 1, f"damaged row group {group}, {lost}: {problem}", last - row)
            first = last


def row_group_bytes(path: str, name: str, file_bytes: int, corpus: CorpusSettings) -> list[int]:
    """Bytes that each row group takes in the columns that are read, inflated.

    Raises DataError where it is no parquet file, or lacks a column.
    """
    with _open(path, name, file_bytes) as file:
        columns = [_Column(file.schema_arrow, field, name) for field in corpus.fields]
        return [_bytes_read(file.metadata, group, columns) for group in range(file.metadata.num_row_groups)]


def _open(path: str, name: str, file_bytes: int) -> ParquetFile:
    remote = is_remote(path)
    try:
        with told_as_storage_error(name):
            return ParquetFile(
                RangedFile(path, file_bytes) if remote else path,
                buffer_size=REMOTE_BUFFER_BYTES if remote else PAGE_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            )
    except (pyarrow.ArrowException, OSError) as error:
        if _of_the_machine(error):
            raise
        raise DataError(f"{name}: not a readable parquet file ({redacted(str(error))})") from None


def _of_the_machine(error: Exception) -> bool:
    """Whether a disk or a name is at fault, not what the file holds: Arrow tells damage as OSError too, without a number."""
    return isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno is not None)


class _Column:
    """One field of the rows: a column, or a field within a column of structs."""

    def __init__(self, schema: pyarrow.Schema, name: str, file: str) -> None:
        """Raises DataError where the file has no such column."""
        self.path = name
        self._top, *self._within = [name] if name in schema.names else name.split(".")
        if schema.names.count(self._top) != 1:
            has = ", ".join(sorted(set(schema.names)))
            raise DataError(f"{file}: no column {self._top!r}; it has {has}" + self._twice(schema))
        kind = schema.field(self._top).type
        for field in self._within:
            if pyarrow.types.is_null(kind):
                return
            if not pyarrow.types.is_struct(kind) or kind.get_field_index(field) < 0:
                raise DataError(f"{file}: no field {name!r}; {self._top} is {kind}")
            kind = kind.field(field).type

    def _twice(self, schema: pyarrow.Schema) -> str:
        return f" ({self._top} more than once)" if self._top in schema.names else ""

    def values(self, batch: pyarrow.RecordBatch) -> list[Any]:
        """One value a row: str, None for null (within a null object too), Undecodable, or whatever else the column holds."""
        array = batch.column(self._top)
        for field in self._within:
            if pyarrow.types.is_null(array.type):
                break
            array = array.flatten()[array.type.get_field_index(field)]  # a missing object has no field
        if pyarrow.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        try:
            return array.to_pylist()
        except UnicodeDecodeError:
            return [_decoded(value) for value in array]


def _decoded(value: pyarrow.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError as error:
        return Undecodable(error)


class _DamagedGroup(Exception):
    """A row group that cannot be read to its end; the message says why."""


def _rows(file: ParquetFile, group: int, columns: list[_Column]) -> Iterator[tuple[Any, ...]]:
    """Values of each row. Raises _DamagedGroup behind the last row that can be read."""
    row_bytes = _bytes_read(file.metadata, group, columns) / max(file.metadata.row_group(group).num_rows, 1)
    at_once = min(max(int(BATCH_BYTES / max(row_bytes, 1)), 1), BATCH_ROWS)
    given = 0
    for rows in (at_once, 1):  # a batch fails as a whole: the rows of it that precede the damage come singly
        try:
            chosen = [column.path for column in columns]
            batches = file.iter_batches(rows, row_groups=[group], columns=chosen, use_threads=False)
            for values in islice(_values(batches, columns), given, None):
                given += 1
                yield values
            return
        except (pyarrow.ArrowException, OSError) as error:
            if _of_the_machine(error):
                raise
            problem = redacted(str(error))
    raise _DamagedGroup(problem)


def _values(batches: Iterator[pyarrow.RecordBatch], columns: list[_Column]) -> Iterator[tuple[Any, ...]]:
    for batch in batches:
        yield from zip(*(column.values(batch) for column in columns), strict=True)


def _bytes_read(metadata: FileMetaData, group: int, columns: list[_Column]) -> int:
    chunks = metadata.row_group(group)
    paths = {column.path for column in columns}
    return sum(
        chunk.total_uncompressed_size
        for chunk in (chunks.column(number) for number in range(chunks.num_columns))
        if any(chunk.path_in_schema == path or chunk.path_in_schema.startswith(f"{path}.") for path in paths)
    )
