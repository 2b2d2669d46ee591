from errno import ENOSPC
from pathlib import Path

import pytest

from data_prep.formats.datatrove import _for_people, export_datatrove, import_datatrove
from data_prep.formats.megatron import export_megatron, import_megatron
from pretrain.errors import DataError, StorageError
from tests.data.folders import write_folder
from tests.data_prep.formats.samples import GOLDEN, LARGE, SMALL, documents, stored, write_tokenizer


@pytest.fixture(params=[("small", SMALL), ("large", LARGE)], ids=["16 bits", "32 bits"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name, vocab_size = request.param
    plain = [document[:-1] for document in documents(vocab_size)]
    write_folder(tmp_path / "data", plain, plain[:3], vocab_size=vocab_size)
    return name, tmp_path / "data"


def test_exports_are_the_bytes_that_megatron_writes(tmp_path: Path, case: tuple[str, Path]) -> None:
    name, folder = case
    report = export_megatron(folder, "train", tmp_path / "out/x")
    for ending in (".bin", ".idx"):
        assert (tmp_path / f"out/x{ending}").read_bytes() == (GOLDEN / f"{name}{ending}").read_bytes()
    assert (report.documents, report.tokens) == (40, 526)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.bin", "x.idx"]


def test_exports_are_the_bytes_that_datatrove_writes(tmp_path: Path, case: tuple[str, Path]) -> None:
    name, folder = case
    export_datatrove(folder, "train", tmp_path / "x.ds", tokenizer_name="golden")
    for ending in (".ds", ".ds.index", ".ds.metadata"):
        assert (tmp_path / f"x{ending}").read_bytes() == (GOLDEN / f"{name}{ending}").read_bytes()


def test_what_is_exported_and_imported_again_is_the_same(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer.json")
    write_folder(tmp_path / "data", [x[:-1] for x in documents()], [[4, 5]], vocab_size=SMALL)
    export_megatron(tmp_path / "data", "train", tmp_path / "m")
    export_megatron(tmp_path / "data", "validation", tmp_path / "v")
    export_datatrove(tmp_path / "data", "train", tmp_path / "d.ds")
    import_megatron([tmp_path / "m"], tmp_path / "a", tokenizer, validation=[tmp_path / "v"])
    import_datatrove([tmp_path / "d.ds"], tmp_path / "b", tokenizer, validation=0.0)
    assert stored(tmp_path / "a") == stored(tmp_path / "b") == stored(tmp_path / "data")
    assert stored(tmp_path / "a", "validation") == [[4, 5, 0]]


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", [x[:-1] for x in documents()], [], vocab_size=SMALL)
    shard = sorted((tmp_path / "data/train").iterdir())[-1]
    content = bytearray(shard.read_bytes())
    content[70] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match="does not match its checksum"):
        export_megatron(tmp_path / "data", "train", tmp_path / "out/m")
    with pytest.raises(DataError, match="does not match its checksum"):
        export_datatrove(tmp_path / "data", "train", tmp_path / "out/d.ds")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "data", [[5, 6]], [], vocab_size=SMALL)

    def full(handle: int) -> None:
        raise OSError(ENOSPC, "No space left on device")

    monkeypatch.setattr("data_prep.formats.exporting.os.fsync", full)
    with pytest.raises(StorageError, match="no space is left"):
        export_megatron(tmp_path / "data", "train", tmp_path / "out/m")
    assert list((tmp_path / "out").iterdir()) == []


def test_no_file_is_overwritten_and_no_split_exported_that_is_empty(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", [[5, 6]], [], vocab_size=SMALL)
    (tmp_path / "m.idx").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"m\.idx: exists"):
        export_megatron(tmp_path / "data", "train", tmp_path / "m")
    with pytest.raises(DataError, match="no document of validation"):
        export_megatron(tmp_path / "data", "validation", tmp_path / "v")
    with pytest.raises(DataError, match=r"ending \.ds"):
        export_datatrove(tmp_path / "data", "train", tmp_path / "d")
    with pytest.raises(DataError, match="not a folder"):
        export_megatron(tmp_path / "data", "train", tmp_path / "m.idx/x")


def test_a_document_longer_than_megatron_can_say_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "data", [[5], [5, 6, 7, 8]], [], vocab_size=SMALL)
    monkeypatch.setattr("data_prep.formats.megatron.MAX_SEQUENCE", 4)
    with pytest.raises(DataError, match="document 1 of train has 5 tokens"):
        export_megatron(tmp_path / "data", "train", tmp_path / "m")


@pytest.mark.parametrize(
    ("tokens", "text"),
    [(0, "0.00 T"), (7, "7.00 T"), (526, "526 T"), (1_235, "1.24 kT"), (9_999, "10.0 kT"), (999_999, "1.00 MT"),
     (123_456_789, "123 MT"), (10**12, "1.00 TT")],
)  # fmt: skip
def test_counts_for_people_have_three_digits(tokens: int, text: str) -> None:
    assert _for_people(tokens) == text
