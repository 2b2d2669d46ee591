"""Compressed files: read like plain ones, streamed, and damage costs what lies behind it alone."""

import gzip
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data_prep.items import Part
from data_prep.streams import Damaged, lines_of, open_part
from tests.data_prep.corpora import text, write_jsonl
from tests.data_prep.reading import bad, corpus_of, read, texts

Compress = Callable[[bytes], bytes]


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


CODECS = pytest.mark.parametrize(
    ("suffix", "kind", "compress"), [(".gz", "gzip", gzip.compress), (".zst", "zstd", zstd)], ids=["gzip", "zstd"]
)


def inflated(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    size = len(content)
    with open_part(Part(str(path), path.name, 0, size, size, size, "1")) as file:
        return file.read()


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(size + 1000 * seed).randbytes(size)


@CODECS
def test_members_padding_and_empty_files_are_read(tmp_path: Path, suffix: str, kind: str, compress: Compress) -> None:
    path = tmp_path / f"a{suffix}"
    assert inflated(path, b"") == b""
    assert inflated(path, compress(b"")) == b""
    parts = [noise(100_000), bytes(5_000_000), b"end"]
    assert inflated(path, b"".join(map(compress, parts))) == b"".join(parts)
    if suffix == ".gz":
        assert inflated(path, compress(b"one") + bytes(1000) + compress(b"two") + bytes(10)) == b"onetwo"
    else:
        skippable = (0x184D2A50).to_bytes(4, "little") + (4).to_bytes(4, "little") + b"note"
        assert inflated(path, skippable + compress(b"one")) == b"one"


@CODECS
def test_compressed_texts_and_rows_are_read_like_plain_ones(
    tmp_path: Path, suffix: str, kind: str, compress: Compress
) -> None:
    documents = [text(number, 3) for number in range(50)]
    plain = write_jsonl(tmp_path / "plain", [{"text": document} for document in documents])
    rows = tmp_path / "rows" / f"a.jsonl{suffix}"
    rows.parent.mkdir()
    rows.write_bytes(compress(plain.read_bytes()))
    found = read(corpus_of("jsonl", rows.parent), tmp_path, task_bytes=100)
    assert len(found) == 1 and texts(found) == documents
    (tmp_path / f"a.txt{suffix}").write_bytes(compress(documents[0].encode()))
    corpus = corpus_of("text", tmp_path / f"a.txt{suffix}")
    assert texts(read(corpus, tmp_path)) == documents[:1]
    long = bad(read(corpus, tmp_path, max_document_bytes=100))
    assert long == [(None, "more than 100 bytes, over max_document_bytes")]


@CODECS
def test_bad_lines_of_compressed_rows_have_their_number(
    tmp_path: Path, suffix: str, kind: str, compress: Compress
) -> None:
    plain = write_jsonl(tmp_path / "plain", [{"text": "good"}, b"{bad", {"text": 1}])
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(plain.read_bytes()))
    assert [line for line, _ in bad(read(corpus_of("jsonl", tmp_path / f"a.jsonl{suffix}"), tmp_path))] == [2, 3]


@CODECS
def test_a_cut_file_keeps_the_documents_before_the_cut(
    tmp_path: Path, suffix: str, kind: str, compress: Compress
) -> None:
    documents = [f"{number} {noise(2000, number).hex()}" for number in range(400)]
    whole = compress(write_jsonl(tmp_path / "plain", [{"text": document} for document in documents]).read_bytes())
    path = tmp_path / f"a.jsonl{suffix}"
    for size in (1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        found = read(corpus_of("jsonl", path), tmp_path)
        kept = texts(found)
        why = f"damaged {kind} file: it is cut after {size:,} bytes; what comes behind is lost: fetch the file again"
        assert kept == documents[: len(kept)] and bad(found) == [(len(kept) + 1, why)]
        assert size < len(whole) // 2 or len(kept) > 50


@CODECS
def test_a_flipped_byte_costs_nothing_before_it(tmp_path: Path, suffix: str, kind: str, compress: Compress) -> None:
    documents = [f"{number} {noise(1000 + number).hex()}" for number in range(600)]
    whole = compress(write_jsonl(tmp_path / "plain", [{"text": document} for document in documents]).read_bytes())
    path = tmp_path / f"a.jsonl{suffix}"
    source = random.Random(7)
    for _ in range(12):
        at = source.randrange(100, len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        found = read(corpus_of("jsonl", path), tmp_path)
        before = int(len(documents) * at / len(whole)) - 130  # a block of zstd holds 130 kB of text, 60 documents
        assert texts(found)[: max(before, 0)] == documents[: max(before, 0)]
        assert any(reason.startswith(f"damaged {kind} file: ") for _, reason in bad(found))


def test_damaged_gzip_gives_all_that_precedes_the_damage(tmp_path: Path) -> None:
    lines = b"".join(b"%06d\n" % number for number in range(100_000))
    whole = gzip.compress(lines, mtime=0)
    path = tmp_path / "a.gz"
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 64 + whole[len(whole) // 2 + 64 :])
    size = len(whole)
    got = b""
    with open_part(Part(str(path), path.name, 0, size, size, size, "1")) as file, pytest.raises(Damaged):
        for line in lines_of(file, 1000):
            got += line
    assert len(got) > 0.45 * len(lines) and lines.startswith(got[: int(0.45 * len(lines))])


@CODECS
def test_a_compressed_file_is_streamed(tmp_path: Path, suffix: str, kind: str, compress: Compress) -> None:
    line = b'{"text": "' + noise(1000).hex().encode() + b'"}\n'
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compress(line * 10_000))
    size = path.stat().st_size
    tracemalloc.start()
    with open_part(Part(str(path), path.name, 0, size, size, size, "1")) as file:
        assert sum(1 for _ in lines_of(file, 10_000)) == 10_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000 < 20_000_000 < len(line) * 10_000


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "first"}\n' + bytes(20_000_000) + b'\n{"text": "last"}\n', 1))
    tracemalloc.start()
    found = read(corpus_of("jsonl", path), tmp_path, max_document_bytes=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(found) == ["first", "last"] and bad(found) == [(2, "a line of more than 8,000 bytes")]
    assert peak < 8_000_000


def test_a_window_larger_than_the_library_s_bound_is_no_damage(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    writer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    assert inflated(tmp_path / "a.zst", writer.compress(b"a line\n") + writer.flush()) == b"a line\n"
