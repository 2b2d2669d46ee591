import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.checkpoint.format import CheckpointRef, committed_checkpoints, latest_checkpoint
from pretrain.checkpoint.load import find_checkpoint, load_weights, restore
from pretrain.checkpoint.prune import prune
from pretrain.checkpoint.save import save
from pretrain.engine.loss_scale import LossScale
from pretrain.engine.protocol import Fragment
from pretrain.errors import CheckpointError, RankFault
from pretrain.parallel.mesh import ProcessMesh
from tests.checkpoint.fake_engine import FakeEngine, assert_equal_state, launch, run_state, trained_engine

MESH = ProcessMesh.single()


def refuse(ref: CheckpointRef, damage: list[str]) -> None:
    raise AssertionError(f"{ref} was passed over: {damage}")


def newest(run_dir: Path) -> CheckpointRef:
    ref = find_checkpoint(run_dir, MESH, refuse)
    assert ref is not None
    return ref


def test_what_is_saved_is_restored_bit_for_bit(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(7)
    saved = save(engine, tmp_path, 1, run_state(skipped_steps=2))
    fresh = FakeEngine(MESH)
    metadata = restore(fresh, newest(tmp_path))
    assert_equal_state(fresh, engine)
    assert fresh.finished_loads == [(7, 2)]
    assert metadata.state == run_state(skipped_steps=2)
    assert saved.num_bytes == (saved.ref.path / "rank-00000.safetensors").stat().st_size


def test_a_fresh_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path, MESH, refuse) is None


def test_the_folder_holds_nothing_but_safetensors_json_and_the_marker(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    path = save(trained_engine(1), tmp_path, 1, run_state()).ref.path
    assert path == tmp_path / "checkpoints/step-00000001/gen-1"
    names = {file.name for file in path.iterdir()}
    assert names == {"rank-00000.safetensors", "rank-00000.json", "metadata.json", "COMMITTED"}
    assert [entry.name for entry in path.parent.iterdir()] == ["gen-1"]
    tensors = load_file(path / "rank-00000.safetensors")
    assert torch.equal(
        tensors["weight/layers.1.norm.weight[0:4]"], load_weights(newest(tmp_path))["layers.1.norm.weight"]
    )
    assert json.loads((path / "metadata.json").read_text())["state"]["wandb_id"] == "abc123"


def test_not_a_number_and_infinity_are_kept_bit_for_bit(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(1)
    fragment = next(engine.fragments())
    fragment.tensor[:3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    save(engine, tmp_path, 1, run_state())
    fresh = FakeEngine(MESH)
    restore(fresh, newest(tmp_path))
    assert next(fresh.fragments()).tensor.numpy().tobytes() == fragment.tensor.numpy().tobytes()


def test_a_generation_that_is_not_registered_or_no_longer_the_newest_cannot_commit(tmp_path: Path) -> None:
    with pytest.raises(RankFault, match=r"generation 1 has no row in .*attempts\.jsonl"):
        save(trained_engine(1), tmp_path, 1, run_state())
    launch(tmp_path, 1)
    launch(tmp_path, 2)
    with pytest.raises(RankFault, match=r"launch 2 of this run has begun; this one \(1\) stops"):
        save(trained_engine(1), tmp_path, 1, run_state())
    assert latest_checkpoint(tmp_path) is None


def test_a_writer_that_became_stale_while_saving_does_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(tmp_path, 1)
    rename = Path.rename

    def rename_and_lose_the_run(self: Path, target: Path) -> Path:
        launch(tmp_path, 2)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_and_lose_the_run)
    with pytest.raises(RankFault, match="launch 2"):
        save(trained_engine(1), tmp_path, 1, run_state())
    assert latest_checkpoint(tmp_path) is None


def test_a_checkpoint_of_an_unknown_launch_is_ignored(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    launch(tmp_path, 3)
    save(trained_engine(9), tmp_path, 3, run_state())
    (tmp_path / "attempts.jsonl").write_text('{"attempt": 1}\n')
    assert find_checkpoint(tmp_path, MESH, refuse) is None


def test_saving_a_step_again_changes_nothing(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    ref = save(trained_engine(3), tmp_path, 1, run_state()).ref
    before = {file.name: file.stat().st_mtime_ns for file in ref.path.iterdir()}
    assert save(trained_engine(3), tmp_path, 1, run_state()).ref == ref
    assert {file.name: file.stat().st_mtime_ns for file in ref.path.iterdir()} == before


def test_what_an_earlier_try_left_is_replaced(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    ref = CheckpointRef.at(tmp_path, 3, 1)
    for folder in (ref.partial, ref.path):
        folder.mkdir(parents=True)
        (folder / "rank-00000.safetensors").write_bytes(b"half of it")
    save(trained_engine(3), tmp_path, 1, run_state())
    fresh = FakeEngine(MESH)
    restore(fresh, newest(tmp_path))
    assert_equal_state(fresh, trained_engine(3))
    assert not ref.partial.exists()


def test_an_engine_that_leaves_out_a_piece_cannot_commit(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(1)
    engine._fragments = [x for x in engine._fragments if (x.kind, x.shard.name) != ("exp_avg", "layers.1.up.weight")]
    with pytest.raises(CheckpointError, match=r"layers\.1\.up\.weight: its exp_avg is missing"):
        save(engine, tmp_path, 1, run_state())
    whole = trained_engine(1)
    last = whole._fragments[-1]
    whole._fragments[-1] = Fragment(last.kind, last.shard, last.local_shape, 0, last.tensor[:-1], last.writes)
    with pytest.raises(CheckpointError, match="is not wholly in the checkpoint"):
        save(whole, tmp_path, 1, run_state())
    assert latest_checkpoint(tmp_path) is None


def steps_kept(run_dir: Path) -> list[tuple[int, int]]:
    return [(ref.step, ref.generation) for ref in committed_checkpoints(run_dir)]


def test_the_last_n_are_kept(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(0)
    for step in range(1, 6):
        engine.step = step
        prune(tmp_path, save(engine, tmp_path, 1, run_state()).ref, keep=2)
        assert steps_kept(tmp_path) == [(kept, 1) for kept in (step, step - 1) if kept > 0]
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_pruning_replaces_older_generations_of_a_step_and_leaves_refused_later_steps_alone(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(0)
    for step in (100, 200, 300):
        engine.step = step
        save(engine, tmp_path, 1, run_state())
    abandoned = CheckpointRef.at(tmp_path, 400, 1)
    abandoned.path.mkdir(parents=True)
    CheckpointRef.at(tmp_path, 500, 1).partial.mkdir(parents=True)
    launch(tmp_path, 2)
    engine.step = 200  # launch 2 went back to 100, for 200 and 300 were damaged
    prune(tmp_path, save(engine, tmp_path, 2, run_state()).ref, keep=2)
    assert steps_kept(tmp_path) == [(300, 1), (200, 2), (100, 1)]
    assert not abandoned.path.exists()
    assert not CheckpointRef.at(tmp_path, 500, 1).partial.parent.exists()


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_whole_one(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(0)
    for step in (100, 200, 300):
        engine.step = step
        ref = save(engine, tmp_path, 1, run_state()).ref
    damaged = CheckpointRef.at(tmp_path, 200, 1)
    assert prune(tmp_path, ref, keep=2, damaged=[damaged]) == [damaged]
    assert steps_kept(tmp_path) == [(300, 1), (100, 1)]


def test_pruning_leaves_what_a_newer_launch_is_writing(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    engine = trained_engine(1)
    ref = save(engine, tmp_path, 1, run_state()).ref
    being_written = CheckpointRef.at(tmp_path, 50, 2)
    being_written.partial.mkdir(parents=True)
    being_written.path.mkdir()
    prune(tmp_path, ref, keep=1)
    assert being_written.partial.exists()
    assert being_written.path.exists()


def test_the_loss_scale_is_saved_and_put_back_where_there_is_one(tmp_path: Path) -> None:
    launch(tmp_path, 1)
    scale = LossScale(scale=1024.0, attempts=2, last_overflow=1, hysteresis=1)
    ref = save(trained_engine(2), tmp_path, 1, run_state(loss_scale=scale)).ref
    fp16, fp32 = FakeEngine(ProcessMesh.single()), FakeEngine(ProcessMesh.single())
    fp16.loss_scale = LossScale(scale=65536.0, attempts=0, last_overflow=-1, hysteresis=1)
    restore(fp16, ref)
    restore(fp32, ref)
    assert fp16.loss_scale == scale
    assert fp32.loss_scale is None
