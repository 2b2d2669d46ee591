"""Cleaning, near-duplicates and eval files within a preparation: both passes agree on what is kept, and the page tells it."""

import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.report import PrepareReport
from data_prep.sieve import Sieve, sieve_of
from pretrain.data.token_shards import TokenShards, read_manifest
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import DataError
from tests.data_prep.corpora import WORDS, data_settings, output, run, sentence, text, write_texts

EVAL = " ".join(WORDS[at] for at in range(40, 70))
NEAR = "\n".join(sentence(random.Random(5000 + line)) for line in range(60))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_texts(tmp_path_factory.mktemp("cleaning") / "texts")
    (folder / "030.txt").write_text(text(0))  # equal to the first
    (folder / "031.txt").write_text(NEAR + "\nFirst of both, written to ada@mail.org today.\n")
    (folder / "032.txt").write_text(NEAR + "\nSecond of both.\n")
    (folder / "033.txt").write_text(text(40) + EVAL.upper() + ".\n" + text(41))
    (folder / "034.txt").write_text("word " * 400)
    (folder / "035.txt").write_bytes(b"caf\xe9\n")
    (folder / "eval.questions").write_text("")
    return folder


def settings(folder: Path, corpus: Path, **changes: object):  # type: ignore[no-untyped-def]
    """All steps on."""
    evals = corpus.parent / "evals.txt"
    evals.write_text(EVAL + "\n")
    chosen = {
        "cleaning": {"gopher_repetition": {}, "personal_data": {}},
        "dedup": {"method": "minhash"},
        "decontamination": {"paths": [str(evals)]},
        "bad_document_limit": 0.2,
        **changes,
    }
    return data_settings(folder, corpus, **chosen)


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    folder = tmp_path_factory.mktemp("prepared") / "data"
    return folder, run(settings(folder, corpus))


def texts(folder: Path) -> set[str]:
    """All documents, decoded."""
    tokenizer = load_tokenizer(folder)
    found: set[str] = set()
    for split in ("train", "validation"):
        shards = TokenShards.open(folder, split, "open")
        found |= {tokenizer.decode(shards.document(number).tolist()) for number in range(shards.num_documents)}
    return found


def test_every_step_takes_what_is_its_own(prepared: tuple[Path, PrepareReport], corpus: Path) -> None:
    folder, report = prepared
    found = texts(folder)
    assert found >= {text(at) for at in range(24)}
    left = {document for document in found if document not in {text(at) for at in range(24)}}
    assert len(left) == 1 and next(iter(left)).startswith(NEAR)
    assert "ada@mail.org" not in next(iter(left)), "personal data is masked"
    assert report.corpus["duplicates"] == 1 and report.corpus["near_duplicates"] == 1
    assert report.corpus["bad_documents"] == 1
    assert report.corpus["dropped"]["shares text with an eval file"] == 1
    assert any(reason.startswith("gopher_repetition: ") for reason in report.corpus["dropped"])
    assert "1 near-duplicates" in "\n".join(report.lines())


def test_the_page_tells_what_was_left_out_with_examples(prepared: tuple[Path, PrepareReport]) -> None:
    page = (prepared[0] / "cleaning.html").read_text()
    for part in ("Sources", "Equal documents", "Near-duplicates", "Eval files", "Bad documents", "Gopher, repetition"):
        assert f">{part}<" in page, part
    for part in ("similarity 0.", NEAR[:80], "evals.txt", "035.txt", "not UTF-8", "word word word"):
        assert part in page, part


def test_two_workers_give_the_same_bytes_and_the_same_page(
    prepared: tuple[Path, PrepareReport], corpus: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    run(settings(folder, corpus), workers=2)
    assert output(folder) == output(prepared[0])
    assert (folder / "cleaning.html").read_bytes() == (prepared[0] / "cleaning.html").read_bytes()


def test_a_rerun_looks_for_near_duplicates_no_more(
    corpus: Path, tmp_path: Path, prepared: tuple[Path, PrepareReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data"
    run(settings(folder, corpus))
    (folder / "manifest.json").unlink()
    monkeypatch.setattr("data_prep.fates.find_twins", None)
    report = run(settings(folder, corpus))
    assert report.corpus["near_duplicates"] == 1 and output(folder) == output(prepared[0])


def test_one_pass_cleans_as_two_do(corpus: Path, prepared: tuple[Path, PrepareReport], tmp_path: Path) -> None:
    tokenizer = {"path": str(prepared[0] / "tokenizer.json")}
    for name, limit in (("once", 1), ("twice", 10**6)):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("data_prep.pipeline.ONE_PASS_RANGES", limit)
            run(settings(tmp_path / name, corpus, dedup={"method": "none"}, tokenizer=tokenizer))
    assert texts(tmp_path / "once") == texts(tmp_path / "twice")
    once, twice = (read_manifest(tmp_path / name).corpus for name in ("once", "twice"))
    assert once == twice
    pages = [(tmp_path / name / "cleaning.html").read_text() for name in ("once", "twice")]
    assert "Gopher, repetition" in pages[0] and "Eval files" in pages[0]


def test_an_eval_file_that_changes_makes_the_folder_anew_or_stops_it(corpus: Path, tmp_path: Path) -> None:
    evals = tmp_path / "evals.txt"
    evals.write_text(EVAL + "\n")
    data = settings(tmp_path / "data", corpus, decontamination={"paths": [str(evals)]})
    assert data.prepare is not None
    before = Sieve(data.prepare).identity
    assert sieve_of(data.prepare, before).identity == before
    evals.write_text(" ".join(text(7).split()[:40]) + "\n")
    report = run(data)
    assert report.corpus["dropped"]["shares text with an eval file"] == 1 and text(7) not in texts(tmp_path / "data")
    with pytest.raises(DataError, match="changed while it was being used to clean"):
        sieve_of(data.prepare, before)


def test_a_finished_folder_is_not_reused_under_another_eval_file(corpus: Path, tmp_path: Path) -> None:
    evals = tmp_path / "evals.txt"
    evals.write_text(EVAL + "\n")
    data = settings(tmp_path / "data", corpus, decontamination={"paths": [str(evals)]})
    run(data)
    assert run(data).reused
    evals.write_text(" ".join(text(7).split()[:40]) + "\n")
    with pytest.raises(DataError, match=r"other contents of data\.prepare\.decontamination\.paths"):
        run(data)


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"cleaning": {"fineweb": {}}}, "cleaning.fineweb.*nothing here|cleaning.fineweb.*nothing there"),
        ({"dedup": {"method": "none"}}, {}, "dedup.method: 'none' there, 'exact' here"),
        ({"cleaning": {"c4": {}}}, {"cleaning": {}}, "cleaning.c4"),
    ],
)
def test_a_section_that_came_or_went_is_told_as_another_setting(
    corpus: Path, tmp_path: Path, before: dict[str, Any], after: dict[str, Any], told: str
) -> None:
    run(data_settings(tmp_path / "data", corpus, **before))
    with pytest.raises(DataError, match=f"was made with other settings.*({told})"):
        run(data_settings(tmp_path / "data", corpus, **after))
