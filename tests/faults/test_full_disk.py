import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.checkpoint.load import find_checkpoint, restore
from pretrain.checkpoint.save import save
from pretrain.checkpoint.tensor_file import HashedFile
from pretrain.errors import StorageError
from pretrain.parallel.mesh import ProcessMesh
from tests.checkpoint.fake_engine import FakeEngine, assert_equal_state, launch, run_state, trained_engine
from tests.checkpoint.test_checkpoint_save import refuse

MESH = ProcessMesh.single()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for one checkpoint and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=36k,nr_inodes=64", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("a file system can be mounted as root alone")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_is_told_with_path_and_sizes_and_the_older_checkpoint_stays(small_disk: Path) -> None:
    launch(small_disk, 1)
    save(trained_engine(1), small_disk, 1, run_state())
    free_before = os.statvfs(small_disk).f_bavail
    with pytest.raises(StorageError) as caught:
        save(trained_engine(2), small_disk, 1, run_state())
    assert caught.value.exit_code == 5
    message = str(caught.value)
    assert message.startswith("rank 0, saving step 2: disk full: ")
    assert f"{small_disk}/checkpoints/step-00000002/.gen-1.partial" in message
    assert "MB of this checkpoint are written" in message
    assert "MB are free" in message
    assert os.statvfs(small_disk).f_bavail == free_before, "what was begun is removed"
    ref = find_checkpoint(small_disk, MESH, refuse)
    assert ref is not None
    restored = FakeEngine(MESH)
    restore(restored, ref)
    assert_equal_state(restored, trained_engine(1))


def test_out_of_inodes_is_a_full_disk_too(small_disk: Path) -> None:
    launch(small_disk, 1)
    try:
        for number in range(1000):
            (small_disk / f"file-{number}").touch()
    except OSError as error:
        assert error.errno == errno.ENOSPC
    with pytest.raises(StorageError, match="disk full"):
        save(trained_engine(2), small_disk, 1, run_state())


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "disk full"),
        (errno.EDQUOT, "disk full.*quota"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_every_refusal_of_the_disk_is_a_storage_error_and_a_later_try_succeeds(
    tmp_path: Path, number: int, told: str
) -> None:
    launch(tmp_path, 1)
    write = HashedFile.write

    def refuse_the_third(self: HashedFile, data: bytes | memoryview) -> None:
        if self.written.size > 3000:
            raise OSError(number, os.strerror(number))
        write(self, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HashedFile, "write", refuse_the_third)
        with pytest.raises(StorageError, match=told):
            save(trained_engine(2), tmp_path, 1, run_state())
    assert find_checkpoint(tmp_path, MESH, refuse) is None
    save(trained_engine(2), tmp_path, 1, run_state())
    assert find_checkpoint(tmp_path, MESH, refuse) is not None
