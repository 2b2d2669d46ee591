"""Files that are whole or not there, hashes, and paths that stay in their folder."""

import errno
import os
from pathlib import Path

import pytest

from pretrain.errors import StorageError
from pretrain.files import (
    append_json_line,
    hash_bytes,
    hash_file,
    path_within,
    read_json_lines,
    storage_error,
    told_as_storage_error,
    write_atomically,
)


def test_a_file_is_written_with_its_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a/b/file.txt"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_file_has_the_permissions_that_the_user_asks_for(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content_and_no_litter(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    owner = os if where == "fsync" else Path
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(StorageError, match=r"file: no space is left on the disk: free some"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "not permitted"),
        (errno.EROFS, "read-only"),
    ],
)
def test_a_cause_on_the_disk_is_told_with_path_and_fix(number: int, words: str) -> None:
    told = storage_error(OSError(number, "system words", "/some/file"))
    assert told is not None and told.exit_code == 5
    assert str(told).startswith("/some/file: ") and words in str(told) and "choose another folder" in str(told)


def test_other_errors_of_the_system_stay_what_they_are() -> None:
    assert storage_error(OSError(errno.EIO, "Input/output error")) is None
    with pytest.raises(FileNotFoundError), told_as_storage_error("x"):
        Path("/does/not/exist").read_text()


def test_json_lines_come_back_and_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_json_lines(path) == []
    append_json_line(path, {"text": "ä\n", "n": 1})
    append_json_line(path, {"n": 2})
    with path.open("a") as file:
        file.write('{"n": 3')
    assert read_json_lines(path) == [{"text": "ä\n", "n": 1}, {"n": 2}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(StorageError, match=r"rows.jsonl, line 2: not JSON"):
        read_json_lines(path)


def test_a_hash_finds_one_flipped_bit_and_is_the_same_for_file_and_bytes(tmp_path: Path) -> None:
    data = bytearray(os.urandom((4 << 20) + 17))
    path = tmp_path / "data"
    path.write_bytes(data)
    before = hash_file(path)
    assert before == hash_bytes(data) and len(before) == 32
    data[-1] ^= 1
    path.write_bytes(data)
    assert hash_file(path) != before


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../up", "a/../../up", "a\0b", "link/file"])
def test_a_name_that_leaves_its_folder_is_refused(name: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"relative path|by a link"):
        path_within(root, name)


def test_a_plain_name_stays_under_its_folder(tmp_path: Path) -> None:
    assert path_within(tmp_path, "train/0.tokens") == tmp_path / "train/0.tokens"
