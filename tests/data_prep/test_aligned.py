"""Aligned text: line k of one side stands beside line k of the other, whatever the pieces, or nothing is prepared."""

import gzip
import random
from pathlib import Path

import pytest

from data_prep.plan import plan_ranges
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.token_shards import read_manifest
from pretrain.errors import DataError
from tests.data_prep.corpora import data_settings, run, sentence
from tests.data_prep.reading import bad, corpus_of, dropped, pairs, read, read_ranges


def sides(count: int, seed: int = 1) -> list[tuple[str, str]]:
    source = random.Random(seed)
    return [(f"{n} {sentence(source, source.randint(3, 20))}", f"{sentence(source, 5)} {n}") for n in range(count)]


def write_sides(folder: Path, rows: list[tuple[str, str]], end: str = "\n") -> CorpusSettings:
    folder.mkdir(exist_ok=True)
    for name, texts in (("a.en", [row[0] for row in rows]), ("a.de", [row[1] for row in rows])):
        (folder / name).write_text("\n".join(texts) + end, encoding="utf-8", newline="")
    return corpus_of("aligned_text", folder / "a.en", target_paths=[str(folder / "a.de")])


@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("task_bytes", [1, 50, 999, 10**9])
def test_every_pair_is_read_once_whatever_the_ranges(tmp_path: Path, task_bytes: int, end: str) -> None:
    rows = sides(60)
    corpus = write_sides(tmp_path, rows, end)
    found = read(corpus, tmp_path, task_bytes, pair_max_characters=1000)
    assert corpus.kind == "pairs" and (len(found) > 5) == (task_bytes < 1000)
    assert sum(len(part) for part in found) == 60 and set(pairs(found)) <= set(rows) and len(pairs(found)) > 40
    assert pairs(found) == pairs(read(corpus, tmp_path, 10**9, pair_max_characters=1000))


def test_pieces_are_right_beyond_the_block_that_is_counted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.aligned.BLOCK_BYTES", 64)
    rows = sides(200)
    corpus = write_sides(tmp_path, rows)
    found = read(corpus, tmp_path, 300, pair_max_characters=1000)
    assert len(found) > 20 and sum(len(part) for part in found) == 200 and set(pairs(found)) <= set(rows)


@pytest.mark.parametrize("names", [("a.en.gz", "a.de"), ("a.en", "a.de.gz"), ("a.en.gz", "a.de.gz")])
def test_compressed_sides_are_one_range(tmp_path: Path, names: tuple[str, str]) -> None:
    rows = sides(50)
    plain = write_sides(tmp_path, rows)
    for name in names:
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress((tmp_path / name.removesuffix(".gz")).read_bytes()))
    corpus = corpus_of("aligned_text", tmp_path / names[0], target_paths=[str(tmp_path / names[1])])
    found = read(corpus, tmp_path, 100)
    assert len(found) == 1 and pairs(found) == pairs(read(plain, tmp_path, 100))


def test_unequal_numbers_of_lines_are_told_with_both_files(tmp_path: Path) -> None:
    corpus = write_sides(tmp_path, sides(1500))
    with (tmp_path / "a.de").open("a") as file:
        file.write("one too many")
    with pytest.raises(DataError, match=r"corpus: .*a\.en has 1,500 lines and .*a\.de has 1,501; line k of one"):
        plan_ranges(corpus, tmp_path, 100)
    (tmp_path / "a.de").write_text("short\n")
    with pytest.raises(DataError, match=r"a\.en has 1,500 lines and .*a\.de has 1;"):
        plan_ranges(corpus, tmp_path, 100)
    packed = tmp_path / "a.de.gz"
    packed.write_bytes(gzip.compress(b"short\n"))
    with pytest.raises(DataError, match=r"a\.en has 1,500 lines and .*a\.de\.gz has 1;"):
        plan_ranges(corpus_of("aligned_text", tmp_path / "a.en", target_paths=[str(packed)]), tmp_path, 100)


def test_a_side_that_changes_after_planning_is_told(tmp_path: Path) -> None:
    corpus = write_sides(tmp_path, sides(20))
    ranges = plan_ranges(corpus, tmp_path, 10**6)
    (tmp_path / "a.de").write_text("short\n")
    with pytest.raises(DataError, match=r"a\.en and .*a\.de no longer have the same number of lines"):
        read_ranges(ranges, corpus)


def test_files_are_paired_one_by_one_in_order(tmp_path: Path) -> None:
    for name in ("two", "one"):
        write_sides(tmp_path / name, [(f"source {name} here", f"Ziel {name} hier")])
    corpus = corpus_of("aligned_text", tmp_path / "*/a.en", target_paths=[str(tmp_path / "*/a.de")])
    assert pairs(read(corpus, tmp_path)) == [("source one here", "Ziel one hier"), ("source two here", "Ziel two hier")]
    (tmp_path / "two/a.de").unlink()
    with pytest.raises(DataError, match=r"paths and target_paths one by one, but they are 2 and 1"):
        plan_ranges(corpus, tmp_path, 100)
    with pytest.raises(DataError, match=r"corpus\.target_paths: source aligned_text needs at least one file"):
        plan_ranges(corpus_of("aligned_text", tmp_path / "one/a.en"), tmp_path, 100)


def test_bad_lines_are_told_with_the_side_and_the_number_in_any_range(tmp_path: Path) -> None:
    good = b"a good line of text"
    sources = [good, b"caf\xe9", good, b"nul \0", good, b"", good, "carriage\u2028return\r".encode(), b"x" * 5000]
    targets = [b"eine gute Zeile", b"gut", b"\xff", b"gut", b"", b"gut", good, b"Wagen rueck lauf", b"lang"]
    (tmp_path / "a.en").write_bytes(b"\n".join(sources))
    (tmp_path / "a.de").write_bytes(b"\n".join(targets))
    corpus = corpus_of("aligned_text", tmp_path / "a.en", target_paths=[str(tmp_path / "a.de")])
    for task_bytes in (1, 10**6):
        found = read(corpus, tmp_path, task_bytes, pair_max_characters=50)
        assert [line for line, _ in bad(found)] == [2, 3, 4, 9]
        reasons = [reason for _, reason in bad(found)]
        assert "0xe9" in reasons[0] and "0xff" in reasons[1] and "NUL" in reasons[2] and "more than 3,200" in reasons[3]
        assert dropped(found) == ["empty", "empty", "both sides identical"]
        assert pairs(found) == [("a good line of text", "eine gute Zeile"), ("carriage return", "Wagen rueck lauf")]


def test_a_damaged_side_keeps_the_pairs_before_the_damage(tmp_path: Path) -> None:
    rows = sides(300)
    write_sides(tmp_path, rows)
    whole = gzip.compress((tmp_path / "a.de").read_bytes())
    (tmp_path / "a.de.gz").write_bytes(whole[: len(whole) // 2])
    corpus = corpus_of("aligned_text", tmp_path / "a.en", target_paths=[str(tmp_path / "a.de.gz")])
    found = read(corpus, tmp_path)
    assert 50 < sum(len(part) for part in found) < 250 and set(pairs(found)) <= set(rows)
    [(line, reason)] = bad(found)
    assert line == sum(len(part) for part in found) and reason.startswith("damaged gzip file: it is cut after ")


def test_aligned_text_is_prepared_as_pairs(tmp_path: Path) -> None:
    corpus = write_sides(tmp_path / "sides", sides(80))
    data = data_settings(
        tmp_path / "data",
        tmp_path / "sides/a.en",
        "aligned_text",
        target_paths=list(corpus.target_paths),
        objective="seq2seq",
    )
    report = run(data)
    assert read_manifest(data.folder).kind == "pairs" and sum(report.documents.values()) > 50


def test_no_piece_is_empty_where_the_last_cut_is_the_end(tmp_path: Path) -> None:
    corpus = write_sides(tmp_path, sides(10))
    ranges = plan_ranges(corpus, tmp_path, 1)
    assert len(ranges) == 10 and all(part.size and part.target and part.target.size for r in ranges for part in r.parts)
