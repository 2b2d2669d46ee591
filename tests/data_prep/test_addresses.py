"""Files in stores: listed with size and version, read in ranges, refused in plain words, and no secret in any of them."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_prep import addresses
from data_prep.addresses import redacted
from data_prep.listing import list_files
from data_prep.plan import plan_ranges
from pretrain.errors import DataError, StorageError
from tests.data_prep.corpora import data_settings, run, text, write_jsonl
from tests.data_prep.reading import bad, corpus_of, read, read_ranges, texts


class CountingFileSystem(MemoryFileSystem):
    """A store in memory that keeps what was asked of it, and fails when it is told to."""

    protocol = "counting"
    store: dict[str, Any] = {}  # noqa: RUF012 - fsspec's own way: the store outlives its clients
    pseudo_dirs = [""]  # noqa: RUF012
    ranges: list[tuple[int, int]] = []  # noqa: RUF012
    failures: list[Exception] = []  # noqa: RUF012

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("counting://", "memory://", 1))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if self.failures:
            raise self.failures.pop(0)
        self.ranges.append((start or 0, end or 0))
        return super().cat_file(path, start, end, **options)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingFileSystem]:
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    monkeypatch.setattr(addresses, "FIRST_WAIT_S", 0.0)
    for kept in (CountingFileSystem.store, CountingFileSystem.ranges, CountingFileSystem.failures):
        kept.clear()
    yield CountingFileSystem()
    CountingFileSystem.store.clear()


def put_rows(store: CountingFileSystem, path: str, tmp_path: Path, rows: int = 200) -> list[str]:
    documents = [f"{number} " + text(number, 2) for number in range(rows)]
    store.pipe(path, write_jsonl(tmp_path / "rows", [{"text": document} for document in documents]).read_bytes())
    return documents


def test_folders_files_and_globs_are_listed_by_name(store: CountingFileSystem) -> None:
    for name in ("b.jsonl", "a/z.jsonl", "a.jsonl", "a/.hidden.jsonl", "a/readme.md", "c.jsonl.gz"):
        store.pipe(f"/data/{name}", b"x" * len(name))
    whole = list(list_files(["counting://data"], "jsonl", "paths"))
    assert [file.name.removeprefix("counting:///data/") for file in whole] == [
        "a/z.jsonl",
        "a.jsonl",
        "b.jsonl",
        "c.jsonl.gz",
    ]
    assert [file.size for file in whole] == [9, 7, 7, 10]
    assert list(list_files(["counting://data/[ab].jsonl"], "jsonl", "paths")) == whole[1:3]
    assert next(list_files(["counting://data/b.jsonl", "counting://data/**"], "jsonl", "paths")) == whole[2]


def test_the_version_is_the_store_s_tag_or_the_time(store: CountingFileSystem) -> None:
    store.pipe("/a.jsonl", b"one")
    first = next(list_files(["counting://a.jsonl"], "jsonl", "paths")).version
    assert next(list_files(["counting://*.jsonl"], "jsonl", "paths")).version == first
    store.pipe("/a.jsonl", b"two")
    assert next(list_files(["counting://a.jsonl"], "jsonl", "paths")).version != first
    from data_prep.listing import _version

    time = datetime(2026, 1, 1, tzinfo=UTC)
    assert (
        _version({"ETag": '"abc"', "LastModified": time}) == '"abc"' and _version({"LastModified": time}) != "unknown"
    )


def test_rows_in_a_store_are_read_by_ranges_alone(
    store: CountingFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "REQUEST_BYTES", 4096)
    documents = put_rows(store, "/a.jsonl", tmp_path)
    corpus = corpus_of("jsonl", "counting://a.jsonl")
    ranges = plan_ranges(corpus, tmp_path, 8192)
    assert len(ranges) > 3 and not store.ranges
    assert texts(read_ranges(ranges, corpus)) == documents
    store.ranges.clear()
    read_ranges(ranges[1:2], corpus)
    assert all(8191 <= start < 16384 and stop - start <= 4096 for start, stop in store.ranges)


def test_every_format_is_read_from_a_store_as_from_a_disk(store: CountingFileSystem, tmp_path: Path) -> None:
    import gzip

    documents = put_rows(store, "/a.jsonl", tmp_path, rows=60)
    store.pipe("/a.jsonl.gz", gzip.compress(store.cat_file("/a.jsonl")))
    table = pyarrow.table({"text": documents, "n": range(60)})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=10)
    store.pipe("/a.parquet", (tmp_path / "a.parquet").read_bytes())
    for number, document in enumerate(documents):
        store.pipe(f"/texts/{number:03d}.txt", document.encode())
    for source, address in (
        ("jsonl", "counting://a.jsonl"),
        ("jsonl", "counting://a.jsonl.gz"),
        ("parquet", "counting://a.parquet"),
        ("text", "counting://texts"),
    ):
        assert texts(read(corpus_of(source, address), tmp_path)) == documents, address


def test_a_corpus_in_a_store_is_prepared_without_its_secrets_anywhere(
    store: CountingFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rows(store, "/a.jsonl", tmp_path)
    report = run(data_settings(tmp_path / "data", [], "jsonl", paths=["counting://*.jsonl"]))
    assert sum(report.documents.values()) == 200
    with pytest.raises(DataError, match="carries a password or a signature"):
        run(data_settings(tmp_path / "other", [], "jsonl", paths=["counting://user:hunter22@a.jsonl"]))
    files = [path for path in (tmp_path / "other").rglob("*") if path.is_file()]
    assert not any(b"hunter22" in path.read_bytes() for path in files)


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a b.jsonl", [{"text": "one"}])
    found = read(corpus_of("jsonl", (tmp_path / "a b.jsonl").as_uri()), tmp_path)
    assert texts(found) == ["one"]


def test_bad_lines_in_a_store_have_their_number(store: CountingFileSystem, tmp_path: Path) -> None:
    rows = [{"text": "x" * 90}, b"{bad"] * 20
    store.pipe("/a.jsonl", write_jsonl(tmp_path / "rows", rows).read_bytes())
    assert [line for line, _ in bad(read(corpus_of("jsonl", "counting://a.jsonl"), tmp_path, 300))] == list(
        range(2, 41, 2)
    )


def test_a_missing_client_is_told_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match=r"corpus\.paths: 's3://bucket/a\.jsonl' needs a client .* pip install s3fs"):
        plan_ranges(corpus_of("jsonl", "s3://bucket/a.jsonl"), tmp_path, 1000)
    with pytest.raises(DataError, match=r"'nosuch://bucket/a' cannot be opened: Protocol not known"):
        plan_ranges(corpus_of("jsonl", "nosuch://bucket/a"), tmp_path, 1000)


def test_an_address_that_matches_nothing_is_told(store: CountingFileSystem, tmp_path: Path) -> None:
    for address in ("counting://nowhere", "counting://nowhere/*.jsonl"):
        with pytest.raises(DataError, match=r"data\.prepare\.corpus\.paths: 'counting://nowhere.*' matches no file"):
            plan_ranges(corpus_of("jsonl", address), tmp_path, 1000)


@pytest.mark.parametrize(
    "address",
    [
        "s3://user:hunter22@bucket/a.jsonl",
        "https://token@example.org/a.jsonl",
        "https://example.org/a.jsonl?X-Amz-Signature=hunter22&x=1",
        "https://example.org/a.jsonl?sig=hunter22",
    ],
)
def test_addresses_that_carry_secrets_are_refused_without_repeating_them(tmp_path: Path, address: str) -> None:
    with pytest.raises(DataError, match="carries a password or a signature") as caught:
        plan_ranges(corpus_of("jsonl", address), tmp_path, 1000)
    assert "hunter22" not in str(caught.value) and "token@" not in str(caught.value)


def test_secrets_of_the_environment_never_reach_a_message(
    store: CountingFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    put_rows(store, "/a.jsonl", tmp_path)
    store.failures += [ConnectionError("https://u:p@host/a?X-Sig=abc refused wJalrXUtnFEMI") for _ in range(3)]
    corpus = corpus_of("jsonl", "counting://a.jsonl")
    with pytest.raises(
        StorageError, match=r"counting:///a\.jsonl: cannot be read \(ConnectionError: .*refused"
    ) as caught:
        read(corpus, tmp_path)
    assert not any(secret in str(caught.value) for secret in ("wJalrXUtnFEMI", "u:p", "abc"))
    assert redacted("plain text? yes, a@b.org") == "plain text? yes, a@b.org"


def test_a_store_that_stumbles_is_asked_again(store: CountingFileSystem, tmp_path: Path) -> None:
    documents = put_rows(store, "/a.jsonl", tmp_path)
    store.failures += [TimeoutError("slow"), OSError("reset")]
    assert texts(read(corpus_of("jsonl", "counting://a.jsonl"), tmp_path)) == documents


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_store_that_fails_is_no_bad_document(store: CountingFileSystem, tmp_path: Path, name: str) -> None:
    put_rows(store, "/a.jsonl", tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [text(n) for n in range(99)]}), tmp_path / "a.parquet")
    store.pipe("/a.parquet", (tmp_path / "a.parquet").read_bytes())
    corpus = corpus_of(name.partition(".")[2], f"counting://{name}")
    ranges = plan_ranges(corpus, tmp_path, 10**6)
    store.failures += [TimeoutError("slow")] * 3
    with pytest.raises(StorageError, match="TimeoutError"):
        read_ranges(ranges, corpus)
    store.failures.append(PermissionError("no"))
    with pytest.raises(StorageError, match="PermissionError: no"):
        read_ranges(ranges, corpus)
    store.rm(f"/{name}")
    with pytest.raises(DataError, match="gone since the corpus was listed"):
        read_ranges(ranges, corpus)


def test_a_server_that_ignores_ranges_is_told(
    store: CountingFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rows(store, "/a.jsonl", tmp_path)
    monkeypatch.setattr(addresses, "REQUEST_BYTES", 1000)
    monkeypatch.setattr(CountingFileSystem, "cat_file", lambda self, path, **_: self.store["/a.jsonl"].getvalue())
    with pytest.raises(DataError, match="sends whole files where a range of bytes is asked for"):
        read(corpus_of("jsonl", "counting://a.jsonl"), tmp_path)


def test_the_plan_does_not_depend_on_the_order_of_a_listing(
    store: CountingFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "cab":
        put_rows(store, f"/data/{name}.jsonl", tmp_path, rows=20)
    corpus = corpus_of("jsonl", "counting://data")
    before = plan_ranges(corpus, tmp_path, 1000, "web", 7)
    assert before[0].source == "web" and [files.index for files in before] == list(range(7, 7 + len(before)))
    find: Any = CountingFileSystem.find
    monkeypatch.setattr(CountingFileSystem, "find", lambda *a, **options: dict(reversed(find(*a, **options).items())))
    assert plan_ranges(corpus, tmp_path, 1000, "web", 7) == before
