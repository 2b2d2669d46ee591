import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pretrain.checkpoint.boxes import Piece
from pretrain.checkpoint.format import CheckpointRef, read_index, read_marker
from pretrain.checkpoint.load import CheckpointReader, find_checkpoint, load_weights, restore
from pretrain.checkpoint.save import save
from pretrain.errors import CheckpointError, StorageError
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import ProcessMesh
from tests.checkpoint.fake_engine import (
    KINDS,
    FakeEngine,
    assert_equal_state,
    launch,
    mesh_of,
    run_state,
    trained_engine,
)
from tests.worlds import World

STEPS = 3
LAYOUTS = [
    ParallelLayout(tp=4),
    ParallelLayout(dp=4),
    ParallelLayout(pp=4),
    ParallelLayout(pp=2, tp=2),
    ParallelLayout(dp=2, tp=2),
    ParallelLayout(pp=2, dp=2),
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(4) as ranks:
        yield ranks


def unexpected(ref: CheckpointRef, damage: list[str]) -> None:
    raise AssertionError(f"{ref}: {damage}")


def save_in_ranks(layout: ParallelLayout, run_dir: Path) -> None:
    save(trained_engine(STEPS, mesh_of(layout)), run_dir, 1, run_state())


def restore_in_ranks(layout: ParallelLayout, run_dir: Path) -> tuple[int, int]:
    """Restores and compares with an engine that trained in this very layout; bytes that were read and that were needed."""
    mesh = mesh_of(layout)
    ref = find_checkpoint(run_dir, mesh, unexpected)
    assert ref is not None
    engine, expected = FakeEngine(mesh), trained_engine(STEPS, mesh)
    readers: list[CheckpointReader] = []
    start = CheckpointReader.__init__

    def remember(self: CheckpointReader, ref: CheckpointRef) -> None:
        start(self, ref)
        readers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointReader, "__init__", remember)
        restore(engine, ref)
    assert_equal_state(engine, expected)
    needed = sum(
        box.size * x.tensor.element_size()
        for x in expected.fragments()
        for box in Piece(x.shard.starts, x.shard.lengths, x.local_shape, x.start, x.tensor.numel()).boxes()
    )
    return readers[0].bytes_read, needed


@pytest.mark.parametrize("layout", LAYOUTS, ids=ParallelLayout.describe)
def test_four_ranks_to_one_and_to_the_same_layout(world: World, tmp_path: Path, layout: ParallelLayout) -> None:
    launch(tmp_path, 1)
    world.run(save_in_ranks, layout, tmp_path)
    single = ProcessMesh.single()
    ref = find_checkpoint(tmp_path, single, unexpected)
    assert ref is not None
    engine, expected = FakeEngine(single), trained_engine(STEPS)
    restore(engine, ref)
    assert_equal_state(engine, expected)
    weights = {x.shard.name: x.tensor.view(x.shard.shape) for x in expected.fragments() if x.kind == "weight"}
    loaded = load_weights(ref)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    assert all(read == needed for read, needed in world.run(restore_in_ranks, layout, tmp_path))


@pytest.mark.parametrize("layout", LAYOUTS, ids=ParallelLayout.describe)
def test_one_rank_to_four(world: World, tmp_path: Path, layout: ParallelLayout) -> None:
    launch(tmp_path, 1)
    save(trained_engine(STEPS), tmp_path, 1, run_state())
    assert all(read == needed for read, needed in world.run(restore_in_ranks, layout, tmp_path))


@pytest.mark.parametrize(("before", "after"), list(zip(LAYOUTS, [*LAYOUTS[1:], LAYOUTS[0]], strict=True)))
def test_between_layouts_of_four(world: World, tmp_path: Path, before: ParallelLayout, after: ParallelLayout) -> None:
    launch(tmp_path, 1)
    world.run(save_in_ranks, before, tmp_path)
    assert all(read == needed for read, needed in world.run(restore_in_ranks, after, tmp_path))


def test_replicas_and_tied_copies_are_written_once(world: World, tmp_path: Path) -> None:
    launch(tmp_path, 1)
    world.run(save_in_ranks, ParallelLayout(pp=2, tp=2), tmp_path)
    ref = CheckpointRef.at(tmp_path, STEPS, 1)
    indexes = [read_index(ref, read_marker(ref), rank) for rank in range(4)]
    written = [(r.kind, r.name, r.starts) for index in indexes for r in index.regions]
    assert len(written) == len(set(written))
    expected = {("embedding.weight", (0, 0)), ("embedding.weight", (5, 0)), ("layers.0.norm.weight", (0,))}
    assert {(kind, *part) for kind in KINDS for part in expected} <= set(written)


def find_in_ranks(run_dir: Path) -> tuple[int, list[str]]:
    told: list[str] = []
    ref = find_checkpoint(run_dir, mesh_of(ParallelLayout(dp=4)), lambda _, damage: told.extend(damage))
    assert ref is not None
    return ref.step, told


def test_all_ranks_agree_on_the_damage_that_one_of_them_finds(world: World, tmp_path: Path) -> None:
    launch(tmp_path, 1)
    save(trained_engine(1), tmp_path, 1, run_state())
    world.run(save_in_ranks, ParallelLayout(tp=4), tmp_path)
    damaged = CheckpointRef.at(tmp_path, STEPS, 1).path / "rank-00002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    answers = world.run(find_in_ranks, tmp_path)
    assert answers == [answers[0]] * 4
    assert answers[0][0] == 1
    assert str(damaged) in answers[0][1][0]


def save_with_one_full_disk(run_dir: Path) -> str:
    engine = trained_engine(STEPS, mesh_of(ParallelLayout(tp=4)))

    def refuse(path: Path, *_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.MonkeyPatch.context() as patch:
        if dist.get_rank() == 2:
            patch.setattr("pretrain.checkpoint.save.write_tensors", refuse)
        try:
            save(engine, run_dir, 1, run_state())
        except StorageError as error:
            return str(error)
    return "saved"


def test_one_full_disk_fails_the_save_on_every_rank_and_the_next_try_succeeds(world: World, tmp_path: Path) -> None:
    launch(tmp_path, 1)
    answers = world.run(save_with_one_full_disk, tmp_path)
    assert answers == [answers[0]] * 4
    assert answers[0].startswith(f"rank 2, saving step {STEPS}: disk full: ")
    world.run(save_in_ranks, ParallelLayout(tp=4), tmp_path)
    assert find_checkpoint(tmp_path, ProcessMesh.single(), unexpected) == CheckpointRef.at(tmp_path, STEPS, 1)


def restore_another_model_in_ranks(run_dir: Path) -> str:
    """Only the last stage knows that a parameter is missing; every rank must be told."""
    mesh = mesh_of(ParallelLayout(pp=4))
    engine = FakeEngine(mesh)
    engine._fragments = [x for x in engine._fragments if x.shard.name != "layers.1.norm.weight"]
    ref = find_checkpoint(run_dir, mesh, unexpected)
    assert ref is not None
    try:
        restore(engine, ref)
    except CheckpointError as error:
        return str(error)
    return "restored"


def test_a_parameter_without_a_place_is_told_on_every_rank(world: World, tmp_path: Path) -> None:
    launch(tmp_path, 1)
    save(trained_engine(1), tmp_path, 1, run_state())
    answers = world.run(restore_another_model_in_ranks, tmp_path)
    assert answers == [answers[0]] * 4
    assert "no place for its exp_avg of layers.1.norm.weight" in answers[0]
