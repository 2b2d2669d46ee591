"""A `ray.data.Dataset` as a corpus: its text column, written to parquet files that preparation then plans over.

    corpus = corpus_from_dataset(ray.data.read_csv("letters.csv"), Path("rows"), text_field="body")

Ray Data is an input here and no more: it has no state to resume from within a pass, and its order is that of finishing blocks
unless it is told to keep it. It is told so, rows come through this process one batch at a time, and the same data set gives
the same files. Ray is imported by whoever made the data set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow

from data_prep.row_files import replace_row_files
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.errors import DataError, PretrainError

if TYPE_CHECKING:
    import ray.data

ROWS = 256
"""Rows that Ray hands over at once."""


def corpus_from_dataset(dataset: "ray.data.Dataset", folder: Path, text_field: str = "text") -> CorpusSettings:
    """Writes the documents of a data set as parquet files, and gives the corpus settings that read them.

    Args:
        dataset: rows with a column of text; its blocks are read in their order. A data set that is shuffled without a seed, or
            whose own functions are not deterministic, gives other files each time.
        folder: of the files; where it holds files of an earlier call they are kept if nothing changed, else replaced.
        text_field: the column; others are left out.

    Raises:
        DataError: there is no such column, the data set cannot be read, or the folder holds something else.
        StorageError: the folder cannot be written.
    """
    replace_row_files(_tables(dataset, text_field), folder)
    return CorpusSettings(source="parquet", paths=(str(folder),), text_field=text_field)


def _tables(dataset: "ray.data.Dataset", text_field: str) -> Iterator[pyarrow.Table]:
    column = text_field.split(".")[0]
    try:
        with _in_order(dataset):
            batches: Any = dataset.iter_batches(batch_format="pyarrow", batch_size=ROWS)
            for table in batches:
                name = text_field if text_field in table.column_names else column
                if name not in table.column_names:
                    has = ", ".join(sorted(table.column_names))
                    raise DataError(f"the data set has no column {name!r}; it has {has}; name one in text_field")
                yield table.select([name]).replace_schema_metadata(None)
    except PretrainError:
        raise
    except Exception as error:  # whatever a function of the data set raises, in Ray's wrapping
        raise DataError(f"the ray.data.Dataset cannot be read: {str(error).strip().splitlines()[-1]}") from error


@contextmanager
def _in_order(dataset: "ray.data.Dataset") -> Iterator[None]:
    """Within it, blocks come in their order, not as they finish."""
    options: Any = dataset.context.execution_options
    before = options.preserve_order
    options.preserve_order = True
    try:
        yield
    finally:
        options.preserve_order = before
