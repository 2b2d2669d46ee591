import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.checkpoint.coverage import check_whole
from pretrain.checkpoint.format import (
    CheckpointRef,
    DamagedFile,
    Marker,
    RankIndex,
    Region,
    committed_checkpoints,
    encode_marker,
    latest_checkpoint,
    read_marker,
)
from pretrain.errors import CheckpointError
from pretrain.files import hash_bytes
from tests.checkpoint.fake_engine import launch


def commit(run_dir: Path, step: int, generation: int) -> CheckpointRef:
    """A folder with nothing but a valid marker."""
    ref = CheckpointRef.at(run_dir, step, generation)
    ref.path.mkdir(parents=True)
    marker = Marker(format=2, step=step, generation=generation, metadata=hash_bytes(b""), indexes=())
    ref.marker.write_bytes(encode_marker(marker))
    return ref


@pytest.mark.parametrize("module", ["format", "verify", "prune"])
def test_the_launcher_can_look_at_checkpoints_without_importing_torch(module: str) -> None:
    code = f"import sys, pretrain.checkpoint.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_newest_is_the_highest_committed_step_then_generation_of_a_registered_launch(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    launch(tmp_path, 2)
    for step, generation in ((100, 1), (200, 1), (200, 2), (90, 2), (300, 3)):
        commit(tmp_path, step, generation)
    uncommitted = CheckpointRef.at(tmp_path, 400, 2)
    uncommitted.path.mkdir(parents=True)
    found = [(ref.step, ref.generation) for ref in committed_checkpoints(tmp_path)]
    assert found == [(200, 2), (200, 1), (100, 1), (90, 2)]
    assert latest_checkpoint(tmp_path) == CheckpointRef.at(tmp_path, 200, 2)


def test_a_run_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    launch(tmp_path, 1)
    (tmp_path / "checkpoints/step-00000010").mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000010/gen-1").write_text("a file, not a folder")
    (tmp_path / "checkpoints/notes").mkdir()
    assert latest_checkpoint(tmp_path) is None


def test_a_marker_in_the_wrong_folder_is_damage(tmp_path: Path) -> None:
    ref = commit(tmp_path, 100, 1)
    other = CheckpointRef.at(tmp_path, 200, 1)
    other.path.parent.mkdir(parents=True)
    ref.path.rename(other.path)
    with pytest.raises(DamagedFile, match="step 100, generation 1: another folder's"):
        read_marker(other)


def index(*regions: Region) -> RankIndex:
    return RankIndex(file="rank-00000.safetensors", size=0, hash=hash_bytes(b""), regions=regions)


def region(
    start: int = 0,
    count: int = 6,
    *,
    kind: str = "weight",
    name: str = "w",
    shape: tuple[int, ...] = (4, 3),
    dim: int | None = 0,
    part: tuple[int, int] = (0, 2),
) -> Region:
    local = (2, 3) if dim == 0 else shape
    starts = (part[0], 0) if dim == 0 else (0, 0)
    lengths = (part[1], 3) if dim == 0 else shape
    place = {"starts": starts, "lengths": lengths, "local_shape": local}
    piece = {"start": start, "count": count, "dtype": "F32", "key": "k"}
    return Region.model_validate({"kind": kind, "name": name, "shape": shape, **place, **piece})


def test_pieces_that_fill_every_part_are_whole_in_any_order_and_with_replicas() -> None:
    check_whole([index(region(3, 3), region(part=(2, 2))), index(region(0, 3), region(part=(2, 2)))])
    check_whole([index(region(4, 8, dim=None), region(0, 5, dim=None))])


@pytest.mark.parametrize(
    ("pieces", "told"),
    [
        ([region(0, 3), region(part=(2, 2))], r"element at \[1, 0\] of \[4, 3\] is missing"),
        ([region(1, 5), region(part=(2, 2))], r"element at \[0, 0\]"),
        ([region()], r"element at \[2, 0\]"),
        ([region(part=(2, 2))], r"element at \[0, 0\]"),
        ([region(), region(part=(3, 1))], r"element at \[2, 0\]"),
        ([region(0, 12, dim=None), region(0, 12, dim=None, name="v", kind="exp_avg")], "exp_avg is missing"),
        ([region(0, 12, dim=None), region(0, 12, dim=None, shape=(3, 4))], r"shape \(4, 3\) and \(3, 4\)"),
    ],
)
def test_a_gap_or_a_contradiction_is_named(pieces: list[Region], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        check_whole([index(*pieces)])
