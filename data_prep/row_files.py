"""Parquet files made from a stream of tables: how rows that come from elsewhere (a hub, Ray Data) become files to plan over.

The same rows give the same files, whatever the sizes of the tables that they came in: rows are cut into groups by their text, and
groups into files. A folder is there whole or not at all: it is written under another name and renamed.
"""

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow
from pyarrow.parquet import ParquetWriter

from pretrain.errors import DataError
from pretrain.files import hash_file, sync_folder, told_as_storage_error

GROUP_BYTES = 8 << 20
"""Of a row group: the smallest piece that a task can read."""
GROUP_ROWS = 65_536
FILE_GROUPS = 32
SLICE_ROWS = 256
"""Rows whose size is measured at once."""
_OWN_NAME = re.compile(r"\d{6,}\.parquet")


def write_row_files(tables: Iterable[pyarrow.Table], folder: Path) -> list[Path]:
    """Writes the rows under a folder, which must not be there; its files, in order.

    Holds one group of rows in memory, and the table that is handed over.

    Raises StorageError for a full disk or a missing permission, and whatever `tables` raises; the folder is then not there.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with told_as_storage_error(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            _write(tables, partial)
            sync_folder(partial)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        sync_folder(folder.parent)
    return row_files(folder)


def row_files(folder: Path) -> list[Path]:
    """The files of a folder that `write_row_files` made, in order."""
    return sorted(folder.glob("*.parquet"))


def replace_row_files(tables: Iterable[pyarrow.Table], folder: Path) -> list[Path]:
    """As `write_row_files` where the folder may be there: files of the same content are left as they are, times included.

    Raises DataError, before a row is read, for a folder that holds anything else: it would be deleted.
    """
    _refuse_strangers(folder)
    fresh = folder.with_name(f".{folder.name}.fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    made = write_row_files(tables, fresh)
    with told_as_storage_error(folder):
        if [_content(path) for path in made] == [_content(path) for path in row_files(folder)]:
            shutil.rmtree(fresh)
        else:
            shutil.rmtree(folder, ignore_errors=True)
            fresh.rename(folder)
            sync_folder(folder.parent)
    return row_files(folder)


def _refuse_strangers(folder: Path) -> None:
    with told_as_storage_error(folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if strangers := [name for name in names if not _OWN_NAME.fullmatch(name)]:
        raise DataError(
            f"{folder}: holds {strangers[0]!r}, which is none of its row files; name a folder for them alone"
        )


def _content(path: Path) -> tuple[str, str]:
    return path.name, hash_file(path)


def _write(tables: Iterable[pyarrow.Table], folder: Path) -> None:
    writer: ParquetWriter | None = None
    number = 0
    try:
        for count, group in enumerate(_groups(tables)):
            if writer is None or count % FILE_GROUPS == 0:
                _finish(writer)
                path, number = folder / f"{number:06d}.parquet", number + 1
                writer = ParquetWriter(path, group.schema, compression="zstd", write_page_checksum=True)
            writer.write_table(group, row_group_size=max(group.num_rows, 1))
    except pyarrow.ArrowException as error:
        raise DataError(f"the data set's rows do not all have the types of the first ones: {error}") from None
    finally:
        _finish(writer)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _finish(writer: ParquetWriter | None) -> None:
    if writer is not None:
        writer.close()


def _groups(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    """The rows in groups of about equal size; the steps are slices of a fixed number of rows, whatever the tables were."""
    pending: list[pyarrow.Table] = []
    size = rows = 0
    for piece in _slices(tables):
        pending.append(piece)
        size, rows = size + piece.nbytes, rows + piece.num_rows
        if size >= GROUP_BYTES or rows >= GROUP_ROWS:
            yield pyarrow.concat_tables(pending)
            pending, size, rows = [], 0, 0
    if pending:
        yield pyarrow.concat_tables(pending)


def _without_null_type(schema: pyarrow.Schema) -> pyarrow.Schema:
    """Columns that are empty in the first table are taken for text."""
    null = pyarrow.types.is_null
    return pyarrow.schema([field.with_type(pyarrow.string()) if null(field.type) else field for field in schema])


def _slices(tables: Iterable[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    rest: pyarrow.Table | None = None
    for table in tables:
        table = table.cast(_without_null_type(table.schema) if rest is None else rest.schema)
        whole = table if rest is None else pyarrow.concat_tables([rest, table])
        full = whole.num_rows - whole.num_rows % SLICE_ROWS
        yield from (whole.slice(at, SLICE_ROWS).combine_chunks() for at in range(0, full, SLICE_ROWS))
        rest = whole.slice(full)
    if rest is not None:
        yield rest
