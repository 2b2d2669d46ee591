"""Parquet: every row of every group, and damage costs the rows behind it in its group alone."""

import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.columns import _Column
from data_prep.items import BadDocument
from data_prep.plan import plan_ranges
from pretrain.errors import DataError
from tests.data_prep.corpora import text
from tests.data_prep.reading import bad, corpus_of, flat, pairs, read, texts


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_text_of_every_type_and_codec_is_read(tmp_path: Path, kind: str, compression: str) -> None:
    documents = [f"{number} zäh " + "x" * (number % 7) for number in range(50)]
    made = pyarrow.array(documents)
    array = made.dictionary_encode() if kind == "dictionary" else made.cast(getattr(pyarrow, kind)())
    path = write(tmp_path / "a.parquet", {"text": array}, row_group_size=20, compression=compression)
    assert texts(read(corpus_of("parquet", path), tmp_path)) == documents


def test_values_that_are_no_text_are_told_by_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["good", None, "", " \n", "nul \0", "bom"], "n": range(6)})
    found = read(corpus_of("parquet", path), tmp_path)
    assert texts(found) == ["good", "bom"]
    assert [line for line, _ in bad(found)] == [2, 5] and "NUL" in bad(found)[1][1]
    assert bad(read(corpus_of("parquet", path, text_field="n"), tmp_path))[0] == (1, "field 'n' is int, not text")


def test_a_value_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    offsets = pyarrow.array([0, 3, 7, 10], pyarrow.int32()).buffers()[1]
    array = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, offsets, pyarrow.py_buffer(b"onecaf\xe9two")])
    path = write(tmp_path / "a.parquet", {"text": array})
    found = read(corpus_of("parquet", path), tmp_path)
    assert texts(found) == ["one", "two"] and bad(found) == [(2, "field 'text' is not UTF-8: byte 3 is 0xe9")]


def test_nested_fields_are_reached_and_missing_objects_are_null(tmp_path: Path) -> None:
    rows = [{"t": {"en": "hello there", "de": "hallo du", "n": 1}}, {"t": None}, {"t": {"en": None, "de": "x", "n": 2}}]
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found = read(corpus_of("parquet", path, source_field="t.en", target_field="t.de"), tmp_path)
    assert pairs(found) == [("hello there", "hallo du")]
    assert bad(found) == [(row, "field 't.en' is null, not text") for row in (2, 3)]
    assert texts(read(corpus_of("parquet", path, text_field="t.de"), tmp_path)) == ["hallo du", "x"]
    with pytest.raises(DataError, match=r"a\.parquet: no field 't\.fr'; t is struct"):
        read(corpus_of("parquet", path, text_field="t.fr"), tmp_path)
    flat = write(tmp_path / "b.parquet", {"t.en": ["flat"], "x": [None]})
    assert texts(read(corpus_of("parquet", flat, text_field="t.en"), tmp_path)) == ["flat"]
    assert bad(read(corpus_of("parquet", flat, text_field="x"), tmp_path)) == [(1, "field 'x' is null, not text")]


def test_small_row_groups_share_a_range_and_large_ones_do_not(tmp_path: Path) -> None:
    documents = [random.Random(number).randbytes(50).hex() for number in range(100)]
    path = write(
        tmp_path / "a.parquet",
        {"text": documents, "other": [document * 20 for document in documents]},
        row_group_size=10,
    )
    corpus = corpus_of("parquet", path)
    for task_bytes, ranges in ((1, 10), (3000, 5), (10**6, 1)):
        assert (
            len(plan_ranges(corpus, tmp_path, task_bytes)) == ranges
        )  # 1,000 bytes a group: other columns do not count
        assert texts(read(corpus, tmp_path, task_bytes)) == documents


def test_damage_is_one_bad_document_that_names_the_rows(tmp_path: Path) -> None:
    documents = [f"{number} " + random.Random(number).randbytes(500).hex() for number in range(4000)]
    path = tmp_path / "a.parquet"
    options = {"row_group_size": 1000, "write_page_checksum": True, "use_dictionary": False, "data_page_size": 100_000}
    options["write_batch_size"] = 50
    write(path, {"text": documents}, **options)
    content = bytearray(path.read_bytes())
    content[int(len(content) * 0.4)] ^= 1  # in the second group, past its middle
    path.write_bytes(content)
    for task_bytes in (1, 10**9):
        found = read(corpus_of("parquet", path), tmp_path, task_bytes)
        [(line, reason)] = bad(found)
        assert line is not None and 1400 < line < 1700
        assert reason.startswith(f"damaged row group 1, rows {line:,} to 2,000 are lost: ")
        assert sum(item.documents for item in flat(found) if isinstance(item, BadDocument)) == 2001 - line
        assert texts(found) == documents[: line - 1] + documents[2000:]


def test_damage_anywhere_never_stops_the_reading_of_other_groups(tmp_path: Path) -> None:
    documents = [text(number, 2) for number in range(90)]
    path = write(tmp_path / "a.parquet", {"text": documents}, row_group_size=30, write_page_checksum=True)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    source = random.Random(3)
    for _ in range(60):
        at = source.randrange(4, footer)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << source.randrange(8))]) + whole[at + 1 :])
        found = read(corpus_of("parquet", path), tmp_path, 10**6)
        kept = texts(found)
        assert set(kept) <= set(documents) and len(kept) >= 60 and len(bad(found)) <= 1
        assert bad(found) or kept == documents


def test_a_column_that_is_there_twice_is_told(tmp_path: Path) -> None:
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column 'text'; it has text \(text more than once\)"):
        plan_ranges(corpus_of("parquet", tmp_path / "a.parquet"), tmp_path, 1000)


def test_a_large_row_group_is_decoded_in_pieces(tmp_path: Path) -> None:
    documents = [random.Random(number).randbytes(50_000).hex() for number in range(300)]
    path = write(
        tmp_path / "a.parquet", {"text": documents}, use_dictionary=False, compression="zstd", write_batch_size=10
    )
    del documents
    corpus = corpus_of("parquet", path)
    from data_prep.read import read_range
    from pretrain.data.prepare_settings import PrepareSettings

    ranges = plan_ranges(corpus, tmp_path, 10**6)
    pool, prepare = pyarrow.default_memory_pool(), PrepareSettings(corpus=corpus)
    tracemalloc.start()
    before, peak = pool.bytes_allocated(), 0
    for _ in read_range(ranges[0], corpus, prepare):
        peak = max(peak, pool.bytes_allocated() - before)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(ranges) == 1 and peak < 15_000_000 and python_peak < 15_000_000 < 30_000_000


def test_what_stands_under_a_missing_object_is_no_text(tmp_path: Path) -> None:
    objects = pyarrow.StructArray.from_arrays(
        [pyarrow.array(["a", "hidden"])], ["en"], mask=pyarrow.array([False, True])
    )
    batch = pyarrow.record_batch([objects], ["t"])
    assert _Column(batch.schema, "t.en", "a.parquet").values(batch) == ["a", None]
