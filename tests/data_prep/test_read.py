"""Reading: every row once whatever the cut, every bad one with its place."""

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data_prep.hub import hub_files
from data_prep.items import BadDocument, Document, Dropped, Item
from data_prep.plan import plan_ranges
from data_prep.read import read_range
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import DataError, StorageError
from tests.data_prep.corpora import data_settings, run, text, write_jsonl, write_texts


def items(tmp_path: Path, source: str, path: Path, task_bytes: int = 1000, **changes: Any) -> list[list[Item]]:
    """What each range holds."""
    data = data_settings(tmp_path / "data", path, source, task_bytes=task_bytes, **changes)
    assert data.prepare is not None
    ranges = plan_ranges(data.prepare.sources["main"], tmp_path / "corpus", task_bytes)
    return [list(read_range(files, data.prepare.sources["main"], data.prepare)) for files in ranges]


def flat(found: list[list[Item]]) -> list[Item]:
    return [item for part in found for item in part]


def texts(found: list[list[Item]]) -> list[str]:
    return [item.sides[0] for item in flat(found) if isinstance(item, Document)]


def bad(found: list[list[Item]]) -> list[tuple[int | None, str]]:
    return [(item.line, item.reason) for item in flat(found) if isinstance(item, BadDocument)]


@pytest.mark.parametrize("task_bytes", [1, 7, 100, 333, 10_000])
def test_every_line_is_read_once_whatever_the_ranges(tmp_path: Path, task_bytes: int) -> None:
    rows = [{"text": f"{number} " + "ä" * (number % 50)} for number in range(120)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    found = items(tmp_path, "jsonl", path, task_bytes)
    assert texts(found) == [row["text"] for row in rows]
    assert (len(found) > 1) == (task_bytes < path.stat().st_size)


def test_bad_rows_are_told_with_their_line_in_any_range(tmp_path: Path) -> None:
    good = {"text": "x" * 60}
    rows = [
        good,
        b'{"text": "cut',
        good,
        {"other": 1},
        {"text": 5},
        b"[1, 2]",
        good,
        b'{"text": "\xff"}',
        b"\xff",
        good,
    ]
    rows += [{"text": "nul \0"}, b'{"text": "\\ud800"}', b"", {"text": "  "}, b"[" * 100_000, good]
    for task_bytes in (100, 1_000_000):
        found = items(tmp_path, "jsonl", write_jsonl(tmp_path / "a.jsonl", rows), task_bytes)
        assert len(texts(found)) == 5
        told = bad(found)
        assert [line for line, _ in told] == [2, 4, 5, 6, 8, 9, 11, 12, 15]
        reasons = [reason for _, reason in told]
        assert (
            reasons[0].startswith("not JSON")
            and reasons[1] == "no field 'text'"
            and reasons[2] == "field 'text' is int, not text"
        )
        assert reasons[3] == "the row is no object" and "not UTF-8" in reasons[4] and "0xff" in reasons[5]
        assert "NUL" in reasons[6] and "surrogate" in reasons[7] and reasons[8].startswith("not JSON")
        assert [item.reason for item in flat(found) if isinstance(item, Dropped)] == ["empty", "empty"]


def test_byte_order_marks_and_carriage_returns_are_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert texts(items(tmp_path, "text", path)) == ["one\ntwo\nthree\n"]
    rows = write_jsonl(tmp_path / "b.jsonl", [b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}'])
    assert texts(items(tmp_path, "jsonl", rows)) == ["one\ntwo"]


def test_overlong_documents_are_quarantined_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x" * 101)
    assert "over max_document_bytes=100" in bad(items(tmp_path, "text", path, max_document_bytes=100))[0][1]
    rows = write_jsonl(tmp_path / "b.jsonl", [{"text": "y" * 101}, {"text": "z" * 2000}, {"text": "short"}])
    found = items(tmp_path, "jsonl", rows, max_document_bytes=100)
    assert texts(found) == ["short"]
    assert [(line, "bytes" in reason) for line, reason in bad(found)] == [(1, True), (2, True)]


def test_nested_fields_are_reached_by_a_path(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"meta": {"body": "deep"}}, {"meta.body": "flat"}, {"meta": 3}])
    found = items(tmp_path, "jsonl", path, text_field="meta.body")
    assert texts(found) == ["deep", "flat"] and bad(found) == [(3, "no field 'meta.body'")]


def test_compressed_lines_are_read_and_damage_is_told(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "x", [{"text": text(number, 3)} for number in range(50)]).read_bytes()
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(plain))
    assert len(texts(items(tmp_path, "jsonl", path))) == 50
    path.write_bytes(gzip.compress(plain)[:-300])
    found = items(tmp_path, "jsonl", path)
    assert 0 < len(texts(found)) < 50 and "damaged gzip file" in bad(found)[0][1]


def write_parquet(path: Path, column: str = "text", rows: int = 50) -> Path:
    table = pyarrow.table(
        {column: [f"row {n} " + text(n, 2) if n != 7 else None for n in range(rows)], "n": list(range(rows))}
    )
    pyarrow.parquet.write_table(table, path, row_group_size=10)
    return path


def test_parquet_rows_are_read_by_row_group_and_missing_values_told(tmp_path: Path) -> None:
    found = items(tmp_path, "parquet", write_parquet(tmp_path / "a.parquet"))
    assert len(found) == 5 and len(texts(found)) == 49
    assert bad(found) == [(8, "field 'text' is null, not text")]


def test_parquet_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'text'; it has body, n"):
        items(tmp_path, "parquet", write_parquet(tmp_path / "a.parquet", "body"))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable parquet file"):
        items(tmp_path, "parquet", tmp_path / "a.parquet")


def test_a_damaged_row_group_is_quarantined(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    content[40:80] = b"\xff" * 40
    path.write_bytes(content)
    found = items(tmp_path, "parquet", path)
    assert bad(found) and len(texts(found)) >= 30


def test_sources_give_the_same_documents(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", documents=12)
    documents = [path.read_text() for path in sorted(folder.iterdir())]
    rows = write_jsonl(tmp_path / "a.jsonl", [{"text": document} for document in documents])
    pyarrow.parquet.write_table(pyarrow.table({"text": documents}), tmp_path / "a.parquet", row_group_size=2)
    for source, path in (("text", folder), ("jsonl", rows), ("parquet", tmp_path / "a.parquet")):
        assert texts(items(tmp_path, source, path)) == documents


def test_globs_and_folders_name_files_once_and_in_order(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "texts", documents=4)
    (folder / ".hidden.txt").write_text("no")
    corpus = CorpusSettings(source="text", paths=(str(folder / "00[12].txt"), str(folder)))
    names = [Path(part.name).name for files in plan_ranges(corpus, tmp_path, 10**9) for part in files.parts]
    assert names == ["001.txt", "002.txt", "000.txt", "003.txt"]


def test_links_are_followed_once_and_one_to_nothing_is_refused(tmp_path: Path) -> None:
    elsewhere = write_texts(tmp_path / "elsewhere", documents=2)
    folder = write_texts(tmp_path / "texts", documents=1)
    (folder / "a link").symlink_to(elsewhere)
    (folder / "round").symlink_to(folder)
    (folder / "the same").symlink_to(elsewhere)
    assert _names(folder) == ["000.txt", "a link/000.txt", "a link/001.txt"]
    (folder / ".hidden").symlink_to("nowhere")
    (folder / "broken").symlink_to("nowhere")
    with pytest.raises(DataError, match="broken' is a link to nothing"):
        _names(folder)


def _names(folder: Path) -> list[str]:
    ranges = plan_ranges(CorpusSettings(source="text", paths=(str(folder),)), folder, 10**9)
    return [str(Path(part.name).relative_to(folder)) for files in ranges for part in files.parts]


def test_a_folder_that_may_not_be_read_is_told_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_texts(tmp_path / "texts", documents=1)
    write_texts(folder / "closed", documents=1)
    scandir = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(StorageError, match="closed: "):
        _names(folder)


@pytest.mark.parametrize("pattern", ["**texts/*.txt", "x" * 5000, "~nobody-of-this-name/x"])
def test_what_is_no_path_and_no_glob_is_told(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=r"corpus\.paths: .* is no path and no glob") as refused:
        plan_ranges(CorpusSettings(source="text", paths=(pattern,)), tmp_path, 1000)
    assert len(str(refused.value)) < 6000


def test_a_folder_is_searched_for_files_of_its_kind_alone(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", documents=2)
    with pytest.raises(DataError, match=r"matches no file that ends in \.parquet"):
        plan_ranges(CorpusSettings(source="parquet", paths=(str(tmp_path / "texts"),)), tmp_path, 1000)


def test_the_standard_library_is_found_without_its_guests(tmp_path: Path) -> None:
    ranges = plan_ranges(CorpusSettings(source="standard_library"), tmp_path, 8 << 20)
    names = {part.name for files in ranges for part in files.parts}
    assert "json/decoder.py" in names and not any("site-packages" in name for name in names)
    assert all(files.size <= 8 << 20 for files in ranges) and not any(Path(name).is_absolute() for name in names)


def test_a_hub_data_set_needs_a_revision(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs `name` and `revision`"):
        hub_files(CorpusSettings(source="hub", name="someone/something"), tmp_path)


def hub_settings(tmp_path: Path) -> DataSettings:
    """A data set in a local folder: the same code of `datasets`, no network."""
    source = tmp_path / "hub"
    source.mkdir()
    write_parquet(source / "train.parquet", rows=30)
    return data_settings(
        tmp_path / "data", [], "hub", name=str(source), revision="main", bad_document_limit=0.1, task_bytes=4000
    )


def test_a_hub_data_set_is_prepared_once_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = hub_settings(tmp_path)
    report = run(data)
    assert sum(report.documents.values()) == 29
    shards, tokenizer = TokenShards.open(data.folder, "train"), load_tokenizer(data.folder)
    assert tokenizer.decode(shards.document(0).tolist()).startswith("row ")
    (tmp_path / "hub" / "train.parquet").unlink()
    (data.folder / "manifest.json").unlink()
    assert sum(run(data).documents.values()) == 29


def test_a_hub_data_set_with_code_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "evil"
    source.mkdir()
    (source / "evil.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'canary')!r}).touch()\n")
    with pytest.raises(DataError, match="cannot be loaded"):
        hub_files(CorpusSettings(source="hub", name=str(source), revision="main"), tmp_path / "corpus")
    assert not (tmp_path / "canary").exists()
