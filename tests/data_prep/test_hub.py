"""Hub data sets: pinned, copied once, no code, the same rows however they come. `datasets` works here on local files."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import pyarrow
import pyarrow.parquet
import pytest

from data_prep.hub import hub_files
from data_prep.plan import plan_ranges
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.errors import DataError
from tests.data_prep.corpora import text, write_jsonl
from tests.data_prep.reading import pairs, read, texts

DOCUMENTS = [f"{number} " + text(number, 3) for number in range(700)]
ROWS = [{"text": document, "id": number, "meta": {"lang": "en"}} for number, document in enumerate(DOCUMENTS)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads another's cache; nothing is asked of a network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def hub(name: Path | str, **changes: Any) -> CorpusSettings:
    return CorpusSettings.model_validate({"source": "hub", "name": str(name), **changes})


def folder_of(tmp_path: Path, kind: str) -> Path:
    """A data set as people keep it: rows in a format, or what `save_to_disk` leaves."""
    folder = tmp_path / "letters"
    folder.mkdir()
    if kind == "jsonl":
        write_jsonl(folder / "train.jsonl", ROWS)
    elif kind == "parquet":
        for number in range(2):
            table = pyarrow.Table.from_pylist(ROWS[350 * number : 350 * (number + 1)])
            pyarrow.parquet.write_table(table, folder / f"train-{number}.parquet", row_group_size=100)
    else:
        datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize("streaming", ["enabled", "disabled"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved"])
def test_a_local_data_set_is_read_in_order(tmp_path: Path, kind: str, streaming: str) -> None:
    corpus = hub(folder_of(tmp_path, kind), streaming=streaming)
    assert texts(read(corpus, tmp_path)) == DOCUMENTS


def test_streaming_makes_the_same_files(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "parquet")
    copies = [hub_files(hub(folder, streaming=way), tmp_path / way) for way in ("enabled", "disabled")]
    assert [path.read_bytes() for path in copies[0]] == [path.read_bytes() for path in copies[1]]
    assert pyarrow.parquet.read_schema(copies[0][0]).names == ["text"]


def test_streaming_loads_no_torch(tmp_path: Path) -> None:
    corpus = hub(folder_of(tmp_path, "jsonl"), streaming="enabled")
    script = (
        "import sys; from pathlib import Path; from data_prep.hub import hub_files; "
        "from pretrain.data.corpus_settings import CorpusSettings; "
        "hub_files(CorpusSettings.model_validate_json(sys.argv[1]), Path(sys.argv[2])); print('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", script, corpus.model_dump_json(), str(tmp_path / "corpus")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_nested_fields_and_pairs_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "letters"
    folder.mkdir()
    rows = [{"translation": {"en": f"letter {n} for you", "de": f"Brief {n} an dich"}} for n in range(5)]
    write_jsonl(folder / "train.jsonl", rows)
    corpus = hub(folder, source_field="translation.en", target_field="translation.de")
    assert pairs(read(corpus, tmp_path))[3] == ("letter 3 for you", "Brief 3 an dich")


def test_it_is_copied_once_and_a_change_is_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl")
    first = plan_ranges(hub(folder), tmp_path / "corpus", 1000)
    assert plan_ranges(hub(folder), tmp_path / "corpus", 1000) == first
    write_jsonl(folder / "train.jsonl", ROWS[:5])
    with pytest.raises(DataError, match=r"letters: changed since it was copied to .*; delete that folder"):
        plan_ranges(hub(folder), tmp_path / "corpus", 1000)
    (folder / "train.jsonl").unlink()
    assert plan_ranges(hub(folder), tmp_path / "corpus", 1000) == first


def test_a_copy_that_fails_leaves_nothing_that_looks_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path, "jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.row_files.sync_folder", _fail)
        with pytest.raises(KeyboardInterrupt):
            hub_files(hub(folder), tmp_path / "corpus")
    assert not list((tmp_path / "corpus").rglob("*.parquet"))
    assert texts(read(hub(folder), tmp_path)) == DOCUMENTS


def _fail(_: Path) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("revision", ["main", "0123abc", "v1.0", "G" * 40, "A" * 40])
def test_only_a_full_commit_pins_a_data_set(tmp_path: Path, revision: str) -> None:
    with pytest.raises(
        DataError, match=rf"corpus\.revision: '{revision}' is not a full commit \(40 hexadecimal digits\)"
    ):
        plan_ranges(hub("someone/something", revision=revision), tmp_path, 1000)


@pytest.mark.parametrize("name", ["../evil", "a/b/c", "https://host/x", "-x", "a b"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="neither a folder here nor a name on the hub"):
        plan_ranges(hub(name, revision="0" * 40), tmp_path, 1000)


def test_what_cannot_be_fetched_is_told_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, subset: str | None, **options: Any) -> None:
        assert "trust_remote_code" not in options and options["revision"] == "0" * 40 and options["streaming"]
        raise ConnectionError("https://hub/x?token=hf_abc unreachable")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    corpus = hub("someone/something", revision="0" * 40, streaming="enabled")
    with pytest.raises(DataError, match=r"someone/something: the data set cannot be loaded: .*unreachable") as caught:
        plan_ranges(corpus, tmp_path, 1000)
    assert "hf_abc" not in str(caught.value)


def test_splits_and_columns_that_are_not_there_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl")
    with pytest.raises(DataError, match="no column 'body'; it has id, meta, text"):
        plan_ranges(hub(folder, text_field="body"), tmp_path / "corpus", 1000)
    with pytest.raises(DataError, match='Unknown split "test"'):
        plan_ranges(hub(folder, split="test"), tmp_path / "corpus", 1000)
    assert not list((tmp_path / "corpus").rglob("*.parquet"))


def test_data_sets_choices_of_split_and_field_do_not_share_a_copy(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "jsonl")
    write_jsonl(folder / "test.jsonl", ROWS[:3])
    corpora = [hub(folder), hub(folder, split="test"), hub(folder, text_field="meta.lang")]
    places = {hub_files(corpus, tmp_path / "corpus")[0].parent for corpus in corpora}
    assert len(places) == 3
    notes = [json.loads(path.read_text()) for path in (tmp_path / "corpus").glob("*.json")]
    assert {note["data_set"][2] for note in notes} == {"train", "test"}


def test_commits_of_a_data_set_do_not_share_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.hub._tables", lambda corpus, local: [pyarrow.table({"text": [corpus.revision]})])
    for digit in "ab":
        corpus = CorpusSettings(source="hub", name="owner/name", revision=digit * 40)
        (path,) = hub_files(corpus, tmp_path)
        assert pyarrow.parquet.read_table(path)["text"].to_pylist() == [digit * 40]
