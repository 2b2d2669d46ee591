"""Message catalogues: pairs come out, clean, once, and never on both sides of the split."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from data_prep.catalogues import BadCatalogue, read_catalogue
from data_prep.clean import normalized
from data_prep.packages import fetch_catalogues
from pretrain.data.batches import training_batches
from pretrain.data.objectives import PairRows
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards, read_manifest
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import DataError
from tests.data_prep.corpora import WORDS, catalogue, data_settings, output, run, write_jsonl

MESSAGES = {
    "_Open": "Ö_ffnen",
    "menu\4Close": "Schließen",
    "%d file\0%d files": "%d Datei\0%d Dateien",
}


@pytest.mark.parametrize("order", ["<", ">"])
def test_messages_contexts_and_plurals_are_read(order: str) -> None:
    assert sorted(read_catalogue(catalogue(MESSAGES, order))) == [
        ("%d file", "%d Datei"),
        ("%d files", "%d Dateien"),
        ("Close", "Schließen"),
        ("_Open", "Ö_ffnen"),
    ]


def test_no_damage_makes_it_read_beyond_the_file() -> None:
    whole = catalogue(MESSAGES)
    for size in range(len(whole)):
        with pytest.raises(BadCatalogue):
            list(read_catalogue(whole[:size]))
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] = 0xFF
        try:
            list(read_catalogue(bytes(damaged)))
        except BadCatalogue:
            continue


def test_a_charset_that_is_not_utf8_is_told() -> None:
    with pytest.raises(BadCatalogue, match="not UTF-8"):
        list(read_catalogue(catalogue({"a": "b"}).replace(b"b", b"\xe4")))


def words(numbers: range, marker: str = "") -> dict[str, str]:
    return {f"{marker}{WORDS[n]} {WORDS[n + 1]} {n}": f"{WORDS[-n]} {WORDS[-n - 1]} {n}" for n in numbers}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Catalogues of two languages, with repetitions across files that differ in form alone."""
    for language, name, messages in (
        ("de", "one.mo", words(range(1, 120))),
        (
            "de",
            "two.mo",
            words(range(60, 140), marker="_") | {"Shared source": "Neues Ziel", "_Shared source!": "Anderes Ziel"},
        ),
        ("fr", "one.mo", {"French": "Français voilà"}),
    ):
        folder = tmp_path / "locale" / language / "LC_MESSAGES"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(catalogue(messages))
    (tmp_path / "locale" / "de" / "LC_MESSAGES" / "bad.mo").write_bytes(b"no catalogue")
    return tmp_path / "locale"


@pytest.fixture
def data(tree: Path, tmp_path: Path) -> DataSettings:
    return data_settings(
        tmp_path / "data", tree, "message_catalogues", objective="seq2seq", sequence_length=24, task_bytes=2000
    )


def sides(data: DataSettings) -> dict[str, list[tuple[str, str]]]:
    tokenizer, found = load_tokenizer(data.folder), {}
    for split in ("train", "validation"):
        rows = PairRows(TokenShards.open(data.folder, split), 8, 8, "single")
        found[split] = [
            (tokenizer.decode(source.tolist()), tokenizer.decode(target.tolist()))
            for source, target in (rows.pair(number) for number in range(rows.num_pairs))
        ]
    return found


def test_pairs_come_back_clean_once_and_of_one_language(data: DataSettings) -> None:
    report = run(data)
    pairs = [pair for split in sides(data).values() for pair in split]
    expected = {*words(range(1, 140)).items(), ("Shared source", "Neues Ziel")} - {("Shared source!", "Anderes Ziel")}
    assert len(pairs) == len(set(pairs))
    assert set(pairs) in (
        expected,
        (expected - {("Shared source", "Neues Ziel")}) | {("Shared source!", "Anderes Ziel")},
    )
    assert read_manifest(data.folder).kind == "pairs" and report.corpus["bad_documents"] == 1


def test_no_held_out_source_or_target_occurs_in_training(data: DataSettings) -> None:
    run(data)
    found = sides(data)
    texts = {split: {normalized(side) for pair in pairs for side in pair} for split, pairs in found.items()}
    assert len(found["validation"]) > 10 and not texts["train"] & texts["validation"]


def test_pairs_are_the_same_bytes_for_any_number_of_workers(data: DataSettings, tmp_path: Path) -> None:
    run(data)
    again = data.model_copy(update={"dir": str(tmp_path / "again")})
    run(again, workers=2)
    assert output(tmp_path / "again") == output(data.folder)


def test_a_bad_catalogue_is_quarantined_by_name(data: DataSettings) -> None:
    run(data)
    assert "bad.mo" in (data.folder / "quarantine.jsonl").read_text()


def test_prepared_pairs_can_be_trained_on(data: DataSettings) -> None:
    run(data)
    with training_batches(
        data, seed=1, global_batch_sequences=4, micro_batch_sequences=2, data_rank=0, data_size=1, first_step=0
    ) as batches:
        assert all(batch.targets > 0 for batch in next(batches))


def test_rows_of_two_columns_are_pairs_too(tmp_path: Path) -> None:
    rows = [{"translation": {"en": source, "de": target}} for source, target in words(range(1, 50)).items()]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = data_settings(
        tmp_path / "data",
        path,
        "jsonl",
        source_field="translation.en",
        target_field="translation.de",
        objective="seq2seq",
    )
    run(data)
    assert sorted(pair for split in sides(data).values() for pair in split) == sorted(words(range(1, 50)).items())


# --- packages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil", "-o=x", "a b", "", "$(touch x)", "UPPER"])
def test_odd_package_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="not the name of a Debian package"):
        fetch_catalogues([name], "de", tmp_path)


def test_without_apt_get_the_other_ways_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"fetched with apt-get, which is not here; copy \.mo files here"):
        fetch_catalogues(["vlc-l10n"], "de", tmp_path / "corpus")


def fake_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, archive: Path | None) -> None:
    """Stand-ins for apt-get and dpkg-deb that serve one archive, or fail."""
    folder.mkdir()
    copy = f'cp {archive} "$PWD/demo_1.0_all.deb"' if archive else "echo 'E: Unable to locate package' >&2; exit 100"
    (folder / "apt-get").write_text(f"#!/bin/sh\n{copy}\n")
    (folder / "dpkg-deb").write_text('#!/bin/sh\ncat "$2"\n')
    for tool in folder.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_package_that_cannot_be_fetched_is_told_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tools(tmp_path / "bin", monkeypatch, None)
    with pytest.raises(
        DataError, match="cannot fetch demo: E: Unable to locate package; check the name and the network"
    ):
        fetch_catalogues(["demo"], "de", tmp_path / "corpus")


def test_catalogues_are_unpacked_once_and_nothing_else_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tmp_path / "content"
    for language in ("de", "fr"):
        place = content / "usr/share/locale" / language / "LC_MESSAGES"
        place.mkdir(parents=True)
        (place / "demo.mo").write_bytes(catalogue(MESSAGES))
    (content / "usr/bin").mkdir()
    (content / "usr/bin/program").write_text("no")
    with tarfile.open(tmp_path / "demo.tar", "w") as made:
        made.add(content, arcname=".")
    fake_tools(tmp_path / "bin", monkeypatch, tmp_path / "demo.tar")
    found = fetch_catalogues(["demo"], "de", tmp_path / "corpus")
    assert [str(path.relative_to(tmp_path / "corpus")) for path in found] == [
        "demo/de/usr/share/locale/de/LC_MESSAGES/demo.mo"
    ]
    files = [path for path in (tmp_path / "corpus").rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"demo.mo", ".complete"}
    shutil.rmtree(tmp_path / "bin")
    assert fetch_catalogues(["demo"], "de", tmp_path / "corpus") == found


def test_an_archive_cannot_write_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo.mo").write_bytes(catalogue(MESSAGES))
    with tarfile.open(tmp_path / "demo.tar", "w") as made:
        made.add(tmp_path / "demo.mo", arcname="../../../../de/LC_MESSAGES/demo.mo")
    fake_tools(tmp_path / "bin", monkeypatch, tmp_path / "demo.tar")
    with pytest.raises(DataError, match="not a readable package"):
        fetch_catalogues(["demo"], "de", tmp_path / "corpus")
    assert not list(tmp_path.rglob("LC_MESSAGES"))


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian's dpkg-deb")
def test_a_real_package_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "package"
    place = root / "usr/share/locale/de/LC_MESSAGES"
    place.mkdir(parents=True)
    (place / "demo.mo").write_bytes(catalogue(MESSAGES))
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: demo\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\nDescription: demo\n"
    )
    subprocess.run(["dpkg-deb", "--build", str(root), str(tmp_path / "demo.deb")], check=True, capture_output=True)
    fake_tools(tmp_path / "bin", monkeypatch, tmp_path / "demo.deb")
    (tmp_path / "bin/dpkg-deb").unlink()
    assert [path.name for path in fetch_catalogues(["demo"], "de", tmp_path / "corpus")] == ["demo.mo"]


def test_a_package_without_the_language_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tarfile.open(tmp_path / "demo.tar", "w"):
        pass
    fake_tools(tmp_path / "bin", monkeypatch, tmp_path / "demo.tar")
    with pytest.raises(DataError, match="demo holds no catalogue of language 'de'"):
        fetch_catalogues(["demo"], "de", tmp_path / "corpus")
