"""Damage to a data folder is found before ranks start."""

from pathlib import Path

import pytest

from pretrain.data import folder_check
from pretrain.data.folder_check import check_files
from pretrain.data.token_shards import TOKENIZER_NAME, read_manifest
from pretrain.errors import DataError
from tests.data.folders import text_documents, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path, text_documents(60, seed=1), text_documents(9, seed=2))
    return tmp_path


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_whole_folder_passes(folder: Path) -> None:
    check_files(folder, read_manifest(folder))


@pytest.mark.parametrize("at", [0, 70, -5])
def test_a_flipped_bit_in_header_tokens_or_footer_is_found(folder: Path, at: int) -> None:
    path = sorted((folder / "train").glob("*.tokens"))[1]
    flip(path, at)
    with pytest.raises(DataError, match=path.name):
        check_files(folder, read_manifest(folder))


def test_the_tokens_of_a_large_folder_are_left_to_the_first_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_check, "READ_WHOLE_BYTES", 10)
    flip(sorted((folder / "train").glob("*.tokens"))[1], 70)
    check_files(folder, read_manifest(folder))


def test_another_tokenizer_is_refused(folder: Path) -> None:
    (folder / TOKENIZER_NAME).write_bytes(b"[]")
    with pytest.raises(DataError, match="not the tokenizer that the token shards were made with"):
        check_files(folder, read_manifest(folder))


def test_a_missing_tokenizer_is_told_with_the_fix(folder: Path) -> None:
    (folder / TOKENIZER_NAME).unlink()
    with pytest.raises(DataError, match="not found; run `pretrain prepare`"):
        check_files(folder, read_manifest(folder))
