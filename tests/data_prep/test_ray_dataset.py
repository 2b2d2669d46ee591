"""A ray.data.Dataset as a corpus: its documents, in its order, in the same files each time."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest

from data_prep.ray_dataset import corpus_from_dataset
from data_prep.ray_tasks import RayTasks
from pretrain.errors import DataError
from tests.data_prep.corpora import text
from tests.data_prep.reading import read, texts

DOCUMENTS = [f"{number} " + text(number, 2) for number in range(600)]


class Tables:
    """What a data set is to its reader: tables of some size, and the option that keeps their order."""

    def __init__(self, documents: list[str], rows: int) -> None:
        self.context = SimpleNamespace(execution_options=SimpleNamespace(preserve_order=False))
        self._tables = [
            pyarrow.table({"body": documents[at : at + rows], "n": range(len(documents[at : at + rows]))})
            for at in range(0, len(documents), rows)
        ]

    def iter_batches(self, **_: Any) -> Iterator[pyarrow.Table]:
        assert self.context.execution_options.preserve_order
        yield from self._tables


def test_a_ray_data_set_is_written_in_its_order(tmp_path: Path, ray_tasks: RayTasks) -> None:
    import ray.data

    tables = [pyarrow.table({"body": DOCUMENTS[at : at + 200]}) for at in (0, 200, 400)]
    dataset = ray.data.from_arrow(tables).map_batches(_last_block_first, batch_format="pyarrow", batch_size=None)
    corpus = corpus_from_dataset(dataset, tmp_path / "rows", "body")
    assert corpus.source == "parquet" and texts(read(corpus, tmp_path)) == DOCUMENTS


def _last_block_first(table: pyarrow.Table) -> pyarrow.Table:
    import time

    time.sleep(1.0 if table["body"][0].as_py().startswith("0 ") else 0.0)
    return table


def test_the_same_rows_leave_the_files_as_they_are_whatever_the_batches(tmp_path: Path) -> None:
    rows: Any = Tables(DOCUMENTS, 100)
    corpus = corpus_from_dataset(rows, tmp_path / "rows", "body")
    assert not rows.context.execution_options.preserve_order
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    again: Any = Tables(DOCUMENTS, 37)
    assert corpus_from_dataset(again, tmp_path / "rows", "body") == corpus
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == before
    other: Any = Tables(DOCUMENTS[:5], 2)
    corpus_from_dataset(other, tmp_path / "rows", "body")
    assert texts(read(corpus, tmp_path)) == DOCUMENTS[:5] and {path.name for path in tmp_path.iterdir()} == {"rows"}


def test_a_column_that_is_not_there_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    rows: Any = Tables(DOCUMENTS, 100)
    with pytest.raises(DataError, match="no column 'text'; it has body, n; name one in text_field"):
        corpus_from_dataset(rows, tmp_path / "rows")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    rows: Any = Tables(DOCUMENTS, 100)
    corpus_from_dataset(rows, tmp_path / "rows", "body")
    (tmp_path / "rows" / "notes.txt").write_text("mine")
    other: Any = Tables(DOCUMENTS[:5], 2)
    with pytest.raises(DataError, match=r"rows: holds 'notes\.txt'"):
        corpus_from_dataset(other, tmp_path / "rows", "body")
    assert (tmp_path / "rows" / "notes.txt").read_text() == "mine"


def test_a_column_that_is_empty_at_first_is_text(tmp_path: Path) -> None:
    rows: Any = Tables([], 1)
    rows._tables = [
        pyarrow.table({"body": pyarrow.nulls(300)}),
        pyarrow.table({"body": pyarrow.array(["late"], "large_string")}),
    ]
    assert texts(read(corpus_from_dataset(rows, tmp_path / "rows", "body"), tmp_path)) == ["late"]
