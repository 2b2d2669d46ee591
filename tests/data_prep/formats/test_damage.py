import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.formats.datatrove import import_datatrove
from data_prep.formats.megatron import import_megatron
from pretrain.errors import DataError
from tests.data_prep.formats.samples import GOLDEN, SMALL, read_plainly, stored, write_megatron, write_tokenizer

MUTATIONS = 300


def put(offset: int, layout: str, value: int) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(layout, content, offset, value)


def cut(size: int) -> Callable[[bytearray], None]:
    def apply(content: bytearray) -> None:
        del content[size:]

    return apply


SIZES, POINTERS, FIRSTS = 34, 34 + 4 * 40, 34 + 12 * 40


@pytest.mark.parametrize(
    ("ending", "change", "message"),
    [
        (".bin", cut(900), r"x\.bin: damaged: it has 900 bytes, its index says 1,052"),
        (".bin", cut(0), "it has 0 bytes"),
        (".idx", cut(0), "cut off at 0 bytes"),
        (".idx", cut(33), "in its header"),
        (".idx", cut(800), "it has 800 bytes, its header says 842"),
        (".idx", put(0, "<B", 65), "does not begin with MMIDIDX"),
        (".idx", put(9, "<Q", 2), "version 1"),
        (".idx", put(17, "<B", 9), "9 is no code"),
        (".idx", put(17, "<B", 7), "holds float32"),
        (".idx", put(18, "<Q", 1 << 62), "its header says"),
        (".idx", put(26, "<Q", 0), "its header says"),
        (".idx", put(SIZES + 8, "<i", -5), "sequence 2 has a negative length"),
        (".idx", put(SIZES + 8, "<i", 5), "sequence 3 begins at byte"),
        (".idx", put(SIZES + 4 * 39, "<i", 5), "its index says"),
        (".idx", put(POINTERS + 8 * 39, "<q", 1 << 40), "sequence 39 begins at byte 1,099,511,627,776"),
        (".idx", put(POINTERS + 8 * 3, "<q", -8), "sequence 3 begins at byte -8"),
        (".idx", put(FIRSTS, "<q", 1), "documents go from sequence 1"),
        (".idx", put(FIRSTS + 8 * 40, "<q", 41), "to 41"),
        (".idx", put(FIRSTS + 8 * 7, "<q", 12), "document 7 ends before it begins"),
        (".idx", lambda content: content.extend(bytes(40)), "several modes"),
    ],
)
def test_damaged_megatron_files_are_told_with_their_rule(
    tmp_path: Path, ending: str, change: Callable[[bytearray], None], message: str
) -> None:
    change_golden(tmp_path, "small", ending, (".bin", ".idx"), change)
    with pytest.raises(DataError, match=message):
        import_megatron([tmp_path / "x"], tmp_path / "data", write_tokenizer(tmp_path / "t.json"))
    assert not (tmp_path / "data").exists(), "nothing is written before every index is checked"


@pytest.mark.parametrize(
    ("ending", "change", "message"),
    [
        (".ds", cut(1000), r"x\.ds: damaged: it has 1,000 bytes, its index says 526 tokens"),
        (".ds.index", cut(100), "no whole number of u64"),
        (".ds.index", cut(80), "its index says"),
        (".ds.index", put(80, "<Q", 3), "document 10 ends before it begins"),
        (".ds.index", put(80, "<Q", 1 << 63), "document 11 ends before it begins"),
        (".ds.index", put(312, "<Q", (1 << 64) - 1), "its index says"),
        (".ds.metadata", cut(5), "it is not three lines"),
        (".ds.metadata", lambda content: content.__setitem__(slice(7, 8), b"4"), "526 tokens of 4 bytes"),
        (".ds.metadata", lambda content: content.__setitem__(slice(0, 2), b"\xff\xfe"), "it is not three lines"),
    ],
)
def test_damaged_datatrove_files_are_told_with_their_rule(
    tmp_path: Path, ending: str, change: Callable[[bytearray], None], message: str
) -> None:
    change_golden(tmp_path, "small", ending, (".ds", ".ds.index", ".ds.metadata"), change)
    with pytest.raises(DataError, match=message):
        import_datatrove([tmp_path / "x.ds"], tmp_path / "data", write_tokenizer(tmp_path / "t.json"))
    assert not (tmp_path / "data").exists()


def change_golden(
    folder: Path, name: str, ending: str, endings: tuple[str, ...], change: Callable[[bytearray], None]
) -> None:
    for each in endings:
        shutil.copy(GOLDEN / f"{name}{each}", folder / f"x{each}")
    content = bytearray((folder / f"x{ending}").read_bytes())
    change(content)
    (folder / f"x{ending}").write_bytes(content)


def test_missing_files_and_folders_in_their_place_are_told(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "t.json")
    with pytest.raises(DataError, match=r"none\.idx: not found"):
        import_megatron([tmp_path / "none"], tmp_path / "data", tokenizer)
    shutil.copy(GOLDEN / "small.idx", tmp_path / "x.idx")
    with pytest.raises(DataError, match=r"x\.bin: not found"):
        import_megatron([tmp_path / "x"], tmp_path / "data", tokenizer)
    (tmp_path / "x.bin").mkdir()
    with pytest.raises(DataError, match=r"x\.bin: cannot be read"):
        import_megatron([tmp_path / "x"], tmp_path / "data", tokenizer)
    with pytest.raises(DataError, match=r"small\.ds\.index: not found|x\.ds: not found"):
        import_datatrove([tmp_path / "x.ds"], tmp_path / "data", tokenizer)
    with pytest.raises(DataError, match="names no file"):
        import_megatron([GOLDEN / "small"], tmp_path / "data", tmp_path / "none.json")


def test_a_file_without_documents_trains_nothing(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", [])
    with pytest.raises(DataError, match="0 documents for train"):
        import_megatron([tmp_path / "x"], tmp_path / "data", write_tokenizer(tmp_path / "t.json"))


def mutate(content: bytearray, source: random.Random) -> None:
    kind = source.randrange(5)
    at = source.randrange(len(content))
    if kind == 0:
        content[at] ^= 1 << source.randrange(8)
    elif kind == 1:
        del content[at:]
    elif kind == 2:
        content[at:at] = source.randbytes(source.randrange(1, 9))
    elif kind == 3:
        content[at : at + 8] = source.choice([b"\xff" * 8, bytes(8), source.randbytes(8)])
    else:
        del content[at : at + source.randrange(1, 9)]


@pytest.mark.parametrize("file", range(2))
def test_mutated_files_give_right_data_or_a_data_error(
    tmp_path: Path, file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Right" is what a plain reading of the changed files says, where the index is whole."""
    monkeypatch.setattr("pretrain.files.os.fsync", lambda handle: None)
    tokenizer, source = write_tokenizer(tmp_path / "t.json"), random.Random(file)
    refused = 0
    for number in range(MUTATIONS // 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        if file == 0:
            change_golden(
                folder, "small", source.choice([".bin", ".idx"]), (".bin", ".idx"), lambda x: mutate(x, source)
            )
            run = lambda: import_megatron([folder / "x"], folder / "data", tokenizer, validation=0.0)  # noqa: B023, E731
        else:
            endings = (".ds", ".ds.index", ".ds.metadata")
            change_golden(folder, "small", source.choice(endings), endings, lambda x: mutate(x, source))
            run = lambda: import_datatrove([folder / "x.ds"], folder / "data", tokenizer, validation=0.0)  # noqa: B023, E731
        try:
            run()
        except DataError as error:
            refused += 1
            assert str(folder) in str(error) and ";" in str(error), error
            continue
        expected = read_plainly(folder / "x") if file == 0 else read_datatrove_plainly(folder / "x.ds")
        assert stored(folder / "data") == [document for document in expected if document]
        assert all(0 <= token < SMALL for document in expected for token in document)
    assert refused > MUTATIONS // 4


def read_datatrove_plainly(path: Path) -> list[list[int]]:
    ends = np.fromfile(f"{path}.index", "<u8").tolist()
    tokens = np.fromfile(path, f"<u{path.stat().st_size // max(ends[-1], 1)}").tolist()
    return [tokens[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
