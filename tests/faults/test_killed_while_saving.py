"""A process is really killed (SIGKILL) before each operation on the file system that a save makes, once for each of them."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain.checkpoint.format import CheckpointRef, committed_checkpoints
from pretrain.checkpoint.load import find_checkpoint, restore
from pretrain.checkpoint.prune import prune
from pretrain.checkpoint.save import save
from pretrain.checkpoint.tensor_file import HashedFile
from pretrain.checkpoint.verify import verify
from pretrain.parallel.mesh import ProcessMesh
from tests.checkpoint.fake_engine import FakeEngine, assert_equal_state, launch, run_state, trained_engine

MESH = ProcessMesh.single()
OPERATIONS: list[tuple[Any, str]] = [
    (Path, "mkdir"),
    (Path, "open"),
    (Path, "rename"),
    (Path, "replace"),
    (Path, "unlink"),
    (HashedFile, "write"),
    (os, "fsync"),
    (os, "unlink"),
    (os, "rmdir"),
    (shutil, "rmtree"),
]


def killed_at(operation: int, work: Callable[[], object]) -> bool:
    """Does the work in a process of its own that is killed before its n-th operation; whether it came that far."""
    child = os.fork()
    if child == 0:
        try:
            _arm(operation)
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _arm(operation: int) -> None:
    """Lets the process kill itself before its n-th operation; a write is cut in its middle."""
    left = operation

    def armed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                if original is HashedFile_write:
                    original(arguments[0], memoryview(arguments[1])[: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return original(*arguments, **named)

        return call

    HashedFile_write = HashedFile.write
    for owner, name in OPERATIONS:
        setattr(owner, name, armed(getattr(owner, name)))


def unexpected(ref: CheckpointRef, damage: list[str]) -> None:
    raise AssertionError(f"{ref} counts but is damaged: {damage}")


def test_a_kill_at_any_operation_of_a_save_leaves_a_whole_checkpoint_and_the_next_launch_saves(tmp_path: Path) -> None:
    committed_steps = []
    for operation in range(1000):
        run_dir = tmp_path / f"killed-at-{operation}"
        run_dir.mkdir()
        launch(run_dir, 1)
        save(trained_engine(1), run_dir, 1, run_state())

        def save_and_prune(run_dir: Path = run_dir) -> None:
            prune(run_dir, save(trained_engine(2), run_dir, 1, run_state()).ref, keep=1)

        if not killed_at(operation, save_and_prune):
            break
        launch(run_dir, 2)
        for ref in committed_checkpoints(run_dir):
            verify(ref)
        ref = find_checkpoint(run_dir, MESH, unexpected)
        assert ref is not None
        restored = FakeEngine(MESH)
        restore(restored, ref)
        assert_equal_state(restored, trained_engine(ref.step))
        committed_steps.append(ref.step)

        prune(run_dir, save(trained_engine(3), run_dir, 2, run_state()).ref, keep=1)
        assert find_checkpoint(run_dir, MESH, unexpected) == CheckpointRef.at(run_dir, 3, 2)
        assert [folder.name for folder in (run_dir / "checkpoints").iterdir()] == ["step-00000003"]
    assert committed_steps == sorted(committed_steps), "once it is committed it stays so"
    assert committed_steps.count(1) >= 15, "the kills before the commit"
    assert committed_steps.count(2) >= 5, "the kills while the older one is deleted"
