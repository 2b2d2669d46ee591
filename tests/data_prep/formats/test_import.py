from pathlib import Path

import numpy as np
import pytest

from data_prep.formats.datatrove import import_datatrove
from data_prep.formats.importing import OPEN
from data_prep.formats.megatron import import_megatron
from pretrain.data.folder_check import check_files
from pretrain.data.token_shards import END_OF_TEXT, PADDING, TARGET, TokenShards, read_manifest
from pretrain.data.tokenizer import load_tokenizer
from pretrain.errors import ConfigError, DataError
from tests.data_prep.formats.samples import (
    END,
    GOLDEN,
    LARGE,
    SMALL,
    Documents,
    documents,
    stored,
    write_megatron,
    write_tokenizer,
)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    return write_tokenizer(tmp_path / "tokenizer.json")


@pytest.fixture(scope="session")
def large_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return write_tokenizer(path, fillers=LARGE - SMALL)


def without_ends(given: Documents) -> Documents:
    return [document[:-1] for document in given]


def test_files_that_megatron_wrote_are_read_document_by_document(tmp_path: Path, tokenizer: Path) -> None:
    report = import_megatron([GOLDEN / "small"], tmp_path / "data", tokenizer, validation=0.0)
    assert stored(tmp_path / "data") == documents()
    assert report.documents == {"train": 40, "validation": 0} and report.tokens["train"] == 526
    assert report.lines()[0].endswith("526 tokens of train, 0 tokens of validation, vocabulary 259")


def test_files_that_datatrove_wrote_are_read_document_by_document(tmp_path: Path, tokenizer: Path) -> None:
    import_datatrove([GOLDEN / "small.ds"], tmp_path / "data", tokenizer, validation=0.0)
    assert stored(tmp_path / "data") == documents()


def test_wide_tokens_of_both_are_read(tmp_path: Path, large_tokenizer: Path) -> None:
    import_megatron([GOLDEN / "large.bin"], tmp_path / "a", large_tokenizer, validation=0.0)
    import_datatrove([GOLDEN / "large.ds"], tmp_path / "b", large_tokenizer, validation=0.0)
    assert stored(tmp_path / "a") == stored(tmp_path / "b") == documents(LARGE)
    assert read_manifest(tmp_path / "a").dtype == np.dtype("<u4")


def test_sentences_are_joined_to_documents_and_empty_ones_left_out(tmp_path: Path, tokenizer: Path) -> None:
    given = [GOLDEN / "sentences"]
    report = import_megatron(given, tmp_path / "data", tokenizer, document_end="append", validation=0.0)
    assert stored(tmp_path / "data") == documents() and report.empty_documents == 1


@pytest.mark.parametrize("dtype", ["<i2", "<i4", "<i8", "<u2"])
def test_tokens_of_every_whole_type_become_the_same_shards(tmp_path: Path, tokenizer: Path, dtype: str) -> None:
    write_megatron(tmp_path / "given", documents(), dtype)
    import_megatron([tmp_path / "given"], tmp_path / "data", tokenizer, validation=0.0, shard_tokens=100)
    assert stored(tmp_path / "data") == documents()
    import_megatron([GOLDEN / "small"], tmp_path / "golden", tokenizer, validation=0.0, shard_tokens=100)
    shards = sorted((tmp_path / "data/train").iterdir())
    assert len(shards) > 4
    for shard in shards:  # but for the hash of the index, the bytes are the same
        assert shard.read_bytes()[:-64] == (tmp_path / "golden/train" / shard.name).read_bytes()[:-64]


def test_held_out_documents_are_chosen_by_content_in_whatever_file_they_stand(tmp_path: Path, tokenizer: Path) -> None:
    forwards, backwards = documents(), documents()[::-1]
    write_megatron(tmp_path / "a", forwards)
    write_megatron(tmp_path / "b", backwards, "<i4")
    import_megatron([tmp_path / "a"], tmp_path / "da", tokenizer, validation=0.3)
    import_megatron([tmp_path / "b"], tmp_path / "db", tokenizer, validation=0.3)
    aside = stored(tmp_path / "da", "validation")
    assert 2 <= len(aside) <= 25 and stored(tmp_path / "db", "validation") == aside[::-1]
    assert sorted(aside + stored(tmp_path / "da")) == sorted(forwards)


def test_given_files_are_held_out_whole(tmp_path: Path, tokenizer: Path) -> None:
    write_megatron(tmp_path / "a", documents()[:30])
    write_megatron(tmp_path / "b", documents()[30:])
    import_megatron([tmp_path / "a"], tmp_path / "data", tokenizer, validation=[tmp_path / "b.idx"])
    assert stored(tmp_path / "data") == documents()[:30]
    assert stored(tmp_path / "data", "validation") == documents()[30:]


def test_an_imported_folder_passes_the_checks_of_a_run_and_decodes(tmp_path: Path, tokenizer: Path) -> None:
    text = "grün, <|endoftext|>"
    letters = [[*load_letters(tokenizer, text), END]]
    write_megatron(tmp_path / "given", letters)
    import_megatron([tmp_path / "given"], tmp_path / "data", tokenizer, validation=0.0)
    manifest = read_manifest(tmp_path / "data")
    check_files(tmp_path / "data", manifest)
    assert load_tokenizer(tmp_path / "data").decode(letters[0]) == text
    assert manifest.splits["train"].text_bytes == len(text.encode())


def load_letters(tokenizer: Path, text: str) -> list[int]:
    from tokenizers import Tokenizer

    loaded = Tokenizer.from_file(str(tokenizer))
    loaded.encode_special_tokens = True
    return loaded.encode(text).ids


def test_another_name_of_the_end_token_is_exchanged_and_no_id_moves(tmp_path: Path) -> None:
    for special in (("</s>", TARGET, PADDING), ("</s>", END_OF_TEXT, PADDING)):
        other = write_tokenizer(tmp_path / "other.json", special)
        folder = tmp_path / f"data{special.index('</s>')}{len(special[1])}"
        import_megatron([GOLDEN / "small"], folder, other, end_of_text="</s>", validation=0.0)
        manifest = read_manifest(folder)
        assert manifest.special.end_of_text == 0 and stored(folder) == documents()
        loaded = load_tokenizer(folder)
        assert loaded.encode("ab</s>") == load_letters(other, "ab</s>")
        assert loaded.decode(documents()[3]) == load_tokenizer(folder).decode(documents()[3][:-1])


def test_special_tokens_that_the_tokenizer_lacks_are_added_behind_its_own(tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other.json", (END_OF_TEXT,))
    write_megatron(tmp_path / "given", [[1, 2, 256, 0]])
    import_megatron([tmp_path / "given"], tmp_path / "data", other, validation=0.0)
    special = read_manifest(tmp_path / "data").special
    assert (special.end_of_text, special.target, special.padding) == (0, 257, 258)
    write_megatron(tmp_path / "beyond", [[1, 2, 257, 0]])
    with pytest.raises(DataError, match="ids 0 to 256"):
        import_megatron([tmp_path / "beyond"], tmp_path / "beyond-data", other, validation=0.0)


def test_missing_ends_are_counted(tmp_path: Path, tokenizer: Path) -> None:
    write_megatron(tmp_path / "given", without_ends(documents()))
    with pytest.raises(DataError, match=r"given\.bin: 40 of 40 documents do not end with .*append"):
        import_megatron([tmp_path / "given"], tmp_path / "data", tokenizer)
    with pytest.raises(DataError, match="40 of 40 documents already end with"):
        import_megatron([GOLDEN / "small"], tmp_path / "data", tokenizer, document_end="append")
    write_megatron(tmp_path / "mixed", [*documents()[:7], *without_ends(documents()[7:])])
    for end in ("present", "append"):
        with pytest.raises(DataError, match="33 of 40 documents do not end with"):
            import_megatron([tmp_path / "mixed"], tmp_path / "data", tokenizer, document_end=end)
    import_megatron([tmp_path / "given"], tmp_path / "data", tokenizer, document_end="append", validation=0.0)
    assert stored(tmp_path / "data") == documents(), "a folder of a failed import is taken again"


@pytest.mark.parametrize(("wrong", "dtype"), [(SMALL, "<u2"), (-1, "<i4"), (1 << 40, "<i8")])
def test_an_unknown_id_is_told_with_file_and_document(tmp_path: Path, tokenizer: Path, wrong: int, dtype: str) -> None:
    given = documents()
    given[17][2] = wrong
    write_megatron(tmp_path / "given", given, dtype)
    with pytest.raises(DataError, match=r"given\.bin: document 17 holds token id .*ids 0 to 258"):
        import_megatron([tmp_path / "given"], tmp_path / "data", tokenizer)
    assert not (tmp_path / "data/manifest.json").exists()


def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    small, data = GOLDEN / "small", tmp_path / "data"
    with pytest.raises(ConfigError, match="no file"):
        import_megatron([], data, tokenizer)
    with pytest.raises(ConfigError, match="given twice"):
        import_megatron([small], data, tokenizer, validation=[GOLDEN / "small.idx"])
    with pytest.raises(ConfigError, match="below 1"):
        import_megatron([small], data, tokenizer, validation=1.0)
    with pytest.raises(DataError, match="has no special token </s>"):
        import_megatron([small], data, tokenizer, end_of_text="</s>")
    with pytest.raises(DataError, match="0 for validation"):
        import_megatron([small], data, tokenizer, validation=1e-9)
    assert (data / OPEN).exists()
    import_megatron([small], data, tokenizer, validation=0.0)
    with pytest.raises(DataError, match="finished data folder"):
        import_megatron([small], data, tokenizer)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    with pytest.raises(DataError, match=r"notes\.txt"):
        import_megatron([small], tmp_path / "mine", tokenizer)


def test_a_folder_is_filled_in_batches_as_in_one(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_megatron([GOLDEN / "small"], tmp_path / "one", tokenizer, validation=0.3, shard_tokens=90)
    monkeypatch.setattr("data_prep.formats.token_files.BATCH_TOKENS", 16)  # some documents are longer
    monkeypatch.setattr("data_prep.formats.token_files.BATCH_DOCUMENTS", 3)
    monkeypatch.setattr("data_prep.formats.megatron.CHECK_ENTRIES", 7)
    import_megatron([GOLDEN / "small"], tmp_path / "many", tokenizer, validation=0.3, shard_tokens=90)
    assert read_manifest(tmp_path / "one").hash == read_manifest(tmp_path / "many").hash
    assert all(
        shards.shard(index).layout.tokens <= 90
        for shards in [TokenShards.open(tmp_path / "many", "train")]
        for index in range(shards.num_shards)
    )
