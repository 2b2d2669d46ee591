"""The plan holds every file of a corpus: in few bytes, in an order of names alone, under keys that packing does not change."""

import tracemalloc
from dataclasses import asdict
from pathlib import Path

import pytest

from data_prep.items import FileRange, Part
from data_prep.listing import list_files
from data_prep.plan import plan_ranges
from pretrain.data.corpus_settings import CorpusSettings

FILES_OF_A_FOLDER = 500


def folder_of(path: Path, files: int) -> Path:
    """Tiny files, a folder for every 500."""
    for number in range(files):
        file = path / f"{number // FILES_OF_A_FOLDER:03d}" / f"{number}-of-a-name-of-usual-length.txt"
        if number % FILES_OF_A_FOLDER == 0:
            file.parent.mkdir(parents=True)
        file.write_bytes(b"x" * (number % 90 + 10))
    return path


def traced(path: Path) -> tuple[int, int]:
    """Bytes that are kept of a plan, and at most while it is made."""
    corpus = CorpusSettings(source="text", paths=(str(path),))
    tracemalloc.start()
    try:
        ranges = plan_ranges(corpus, path, task_bytes=20_000)
        assert len(ranges) > 1
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_a_file_costs_the_plan_less_than_100_bytes_kept_and_at_its_peak(tmp_path: Path) -> None:
    few, many = 1000, 6000
    traced(folder_of(tmp_path / "first", few))  # what is loaded once
    small, large = traced(folder_of(tmp_path / "few", few)), traced(folder_of(tmp_path / "many", many))
    kept, peak = ((after - before) / (many - few) for before, after in zip(small, large, strict=True))
    assert 10 < kept < 100
    assert peak < 100


@pytest.mark.parametrize("target", [None, Part("/b", "b", 3, 9, 6, 99, "2")])
def test_a_range_gives_its_parts_back_and_hashes_as_they_do(target: Part | None) -> None:
    parts = (
        Part("/odd \udcff name", "odd \ufffd name", 0, 5, 5, 99, "1", target, 7),
        Part("s3://x/\U0001f469", "é", 1, 2, 1, 2**40, "tag"),
    )
    files = FileRange.of(3, parts, "web")
    assert files.parts == parts and files.size == 6
    assert files.to_dict() == {"index": 3, "parts": [asdict(part) for part in parts], "source": "web"}


def test_a_folder_is_listed_in_the_order_of_sorted_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/z", "a.b", "a-b/c", "a/b/c", "é/x", "Z", "a/b.c", ".git/no", "a/.no", "\udcff"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "linked").symlink_to(tmp_path / "Z")
    wanted = sorted(
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(tmp_path).parts)
    )
    assert [file.path for file in list_files([str(tmp_path)], "text", "paths")] == [str(path) for path in wanted]
    monkeypatch.chdir(tmp_path)
    here = list(list_files(["."], "text", "paths"))
    assert [file.path for file in here] == [str(path) for path in wanted]
    assert here[0].name == "Z"
