"""Rows of JSON: what each fault of a line becomes, and its number, whatever the ranges."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from data_prep import jsonl, streams
from data_prep.items import BadDocument, Document, Dropped
from data_prep.plan import plan_ranges
from pretrain.errors import DataError
from tests.data_prep.corpora import write_jsonl
from tests.data_prep.reading import bad, corpus_of, flat, read, read_ranges, texts

LINES: list[tuple[bytes, Any]] = [
    (b'{"text": "plain"}', "plain"),
    (b'\xef\xbb\xbf{"text": "marked"}', "marked"),
    (b'{"text": "\xef\xbb\xbfmarked within"}', "marked within"),
    (b'{"text": "one\\r\\ntwo"}\r', "one\ntwo"),
    (b'{"text": "first", "text": "last"}', "last"),
    (b'{"text": "pair \\ud83d\\ude00 whole"}', "pair \U0001f600 whole"),
    (b'{"text": "separators \xe2\x80\xa8 stay"}', "separators \u2028 stay"),
    (b'{"text": "x", "n": 123456789012345678901234567890}', "x"),
    (b"", Dropped("empty")),
    (b" \t\r", Dropped("empty")),
    (b'{"text": ""}', Dropped("empty")),
    (b'{"text": " \\n "}', Dropped("empty")),
    (b'{"text": "half \\ud83d"}', "half of a surrogate pair"),
    (b'{"text": "half \\udc00"}', "half of a surrogate pair"),
    (b'{"text": "half \xed\xa0\xbd"}', "not UTF-8: byte 15 of the line is 0xed"),
    (b'{"text": "nul \\u0000"}', "NUL character"),
    (b'{"text": "raw nul \x00"}', "not JSON"),
    (bytes(50), "not JSON"),
    (b'{"text": null}', "field 'text' is null, not text"),
    (b'{"body": "x"}', "no field 'text'"),
    (b'{"text": 5}', "field 'text' is int, not text"),
    (b'{"text": ["x"]}', "field 'text' is list, not text"),
    (b'{"text": true}', "field 'text' is bool, not text"),
    (b'["text"]', "the row is no object"),
    (b'"text"', "the row is no object"),
    (b"null", "the row is no object"),
    (b'{"text": "x", "n": NaN}', "not JSON"),
    (b'{"text": "cut', "not JSON"),
    (b'{"text": "x"} {"text": "y"}', "not JSON"),
    (b"{'text': 'x'}", "not JSON"),
    (b'{"text": "tab \t"}', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, "not JSON"),
    (b'{"text": "' + b"x" * 300_000 + b'"}', "300,000 bytes, over max_document_bytes=200,000"),
    (b'{"n": "' + b"x" * 1_700_000 + b'", "text": "far"}', "a line of more than 1,600,000 bytes"),
    (b"\xef\xbb\xbf" * 5000 + b"{}", "not JSON"),
    (b'{"text": "end"}', "end"),
]


@pytest.mark.parametrize("task_bytes", [64, 1000, 10**9])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_every_fault_of_a_line_is_told_with_its_number(tmp_path: Path, task_bytes: int, end: bytes) -> None:
    path = tmp_path / "a.jsonl"
    lines = [line for line, _ in LINES if task_bytes > 64 or len(line) < 5000]
    expected = [wanted for line, wanted in LINES if task_bytes > 64 or len(line) < 5000]
    path.write_bytes(b"\n".join(lines) + end)
    items = flat(read(corpus_of("jsonl", path), tmp_path, task_bytes, max_document_bytes=200_000))
    assert len(items) == len(lines)
    for number, (item, wanted) in enumerate(zip(items, expected, strict=True), start=1):
        if isinstance(item, BadDocument):
            assert (item.file, item.line) == (str(path), number) and wanted in item.reason
        else:
            assert item == wanted or item == Document((wanted,))


def test_lines_are_numbered_by_reading_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [b"{bad" + b"x" * 90] * 300)
    corpus, opened = corpus_of("jsonl", path), []
    ranges = plan_ranges(corpus, tmp_path, 950)
    seek: list[int] = []

    class Counted:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Counted":
            return self

        def __exit__(self, *details: Any) -> None:
            self.file.close()

        def seek(self, at: int) -> int:
            return self.file.seek(at)

        def read(self, size: int) -> bytes:
            block = self.file.read(size)
            seek.append(len(block))
            return block

    real = jsonl.open_binary
    monkeypatch.setattr(jsonl, "open_binary", lambda *arguments: opened.append(1) or Counted(real(*arguments)))
    assert [line for line, _ in bad(read_ranges(ranges, corpus))] == list(range(1, 301))
    assert len(opened) == len(ranges) - 1 and sum(seek) < path.stat().st_size
    jsonl._COUNTED.clear()
    backwards = read_ranges(ranges[::-1], corpus)
    assert [line for line, _ in bad(backwards[::-1])] == list(range(1, 301))


def test_a_large_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps({"text": "x" * 2000}) + "\n").encode() * 10_000)
    corpus = corpus_of("jsonl", path)
    ranges = plan_ranges(corpus, tmp_path, 10**9)
    from data_prep.read import read_range
    from pretrain.data.prepare_settings import PrepareSettings

    prepare = PrepareSettings(corpus=corpus)
    tracemalloc.start()
    assert sum(1 for _ in read_range(ranges[0], corpus, prepare)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000


def test_an_endless_line_is_not_read_again_by_every_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"[" + b"1," * 2_000_000 + b'1]\n{"text": "end"}\n')
    corpus = corpus_of("jsonl", path)
    ranges, taken = plan_ranges(corpus, tmp_path, 40_000), []
    skip = streams.skip_line

    def counted(*arguments: Any) -> int:
        taken.append(skip(*arguments))
        return taken[-1]

    monkeypatch.setattr(streams, "skip_line", counted)
    monkeypatch.setattr(jsonl, "skip_line", counted)
    found = read_ranges(ranges, corpus, max_document_bytes=1000)
    assert texts(found) == ["end"] and bad(found) == [(1, "a line of more than 8,000 bytes")]
    assert len(ranges) > 90 and sum(taken) < 1.1 * path.stat().st_size


def test_the_same_files_in_another_order_of_listing_give_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/x", "a.b", "a/z", "c"):
        path = tmp_path / "rows" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [{"text": name}] * 30)
    corpus = corpus_of("jsonl", tmp_path / "rows")
    before = plan_ranges(corpus, tmp_path, 200)
    rglob = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(rglob(self, pattern))))
    assert plan_ranges(corpus, tmp_path, 200) == before
    assert list(dict.fromkeys(texts(read(corpus, tmp_path)))) == ["a/z", "a.b", "b/x", "c"]


def test_one_side_of_a_pair_alone_is_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    for side in ("source_field", "target_field"):
        with pytest.raises(DataError, match="source_field and target_field are set together"):
            plan_ranges(corpus_of("jsonl", path, **{side: "text"}), tmp_path, 200)


def test_planning_and_reading_text_load_neither_pyarrow_nor_datasets_nor_torch() -> None:
    script = "import sys, data_prep.plan, data_prep.read\n"
    script += "print(sorted({'pyarrow', 'datasets', 'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_is_neither_a_file_nor_a_folder_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(DataError, match=r"corpus\.paths: '.*pipe\.jsonl' is neither a file nor a folder"):
        plan_ranges(corpus_of("jsonl", tmp_path / "pipe.jsonl"), tmp_path, 200)
