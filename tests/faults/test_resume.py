"""Stopped, damaged and changed runs of the real engines, against a twin that nothing happened to."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoint.format import latest_checkpoint
from pretrain.checkpoint.load import load_weights
from tests.faults.runs import STEPS, events, losses, make_data, make_run, register, train_in_rank
from tests.worlds import World

LAYOUTS: list[dict[str, int]] = [
    {"pp": 2, "dp": 1, "tp": 1},
    {"pp": 1, "dp": 2, "tp": 1},
    {"pp": 1, "dp": 1, "tp": 2},
    {"pp": 1, "dp": 2, "tp": 1, "zero_stage": 3},
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def twin(world: World, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pp=2 run that nothing happens to."""
    run_dir = make_run(tmp_path_factory.mktemp("runs") / "twin", data)
    assert launch(world, run_dir) == ["finished", "finished"]
    return run_dir


def launch(world: World, run_dir: Path, stop_after: int = -1) -> list[str]:
    return world.run(train_in_rank, run_dir, register(run_dir), stop_after)


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    ref = latest_checkpoint(run_dir)
    assert ref is not None and ref.step == STEPS
    return load_weights(ref)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_run_that_is_stopped_twice_repeats_and_skips_nothing_and_ends_bit_equal(
    world: World, data: Path, tmp_path: Path, layout: dict[str, int]
) -> None:
    straight = make_run(tmp_path / "straight", data, layout=layout)
    launch(world, straight)
    stopped = make_run(tmp_path / "stopped", data, layout=layout)
    for stop_after, reached in ((1, 1), (3, 4)):
        ends = launch(world, stopped, stop_after)
        assert ends == [f"Preempted: stopped by a signal after step {reached} of {STEPS}; its checkpoint is saved"] * 2
    assert launch(world, stopped) == ["finished", "finished"]
    expected = losses(straight)
    expected[3] = {name: value for name, value in expected[3].items() if name.startswith("train/")} | {
        name: value for name, value in losses(stopped)[3].items() if name.startswith("eval/")
    }
    assert losses(stopped) == expected
    weights, wanted = final_weights(stopped), final_weights(straight)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert [event["step"] for event in events(stopped, "resume")] == [1, 4]


def test_a_run_goes_on_in_another_layout_where_it_was(world: World, data: Path, tmp_path: Path, twin: Path) -> None:
    run_dir = make_run(tmp_path / "moved", data)
    launch(world, run_dir, 2)
    for layout, stop_after in ((LAYOUTS[2], 1), (LAYOUTS[3], 1), (LAYOUTS[1], -1)):
        make_run(run_dir, data, layout=layout)
        ends = launch(world, run_dir, stop_after)
    assert ends == ["finished", "finished"]
    moved, stayed = losses(run_dir), losses(twin)
    assert moved.keys() == stayed.keys()
    for step, values in moved.items():
        for name in ("train/loss", "train/grad_norm", "train/lr", "train/tokens"):
            if step:
                assert values[name] == pytest.approx(stayed[step][name], rel=2e-5), (step, name)


def test_a_run_goes_on_with_another_number_of_ranks_over_the_same_samples(
    world: World, data: Path, tmp_path: Path, twin: Path
) -> None:
    run_dir = make_run(tmp_path / "moved", data)
    launch(world, run_dir, 2)
    with World(4) as four, World(1) as one:
        for ranks, layout, stop_after in (
            (four, {"pp": 2, "dp": 2, "tp": 1}, 1),
            (one, {"pp": 1, "dp": 1, "tp": 1}, 1),
            (four, {"pp": 1, "dp": 2, "tp": 2, "zero_stage": 3}, -1),
        ):
            make_run(run_dir, data, layout=layout)
            ends = launch(ranks, run_dir, stop_after)
    assert set(ends) == {"finished"}
    moved, stayed = losses(run_dir), losses(twin)
    assert moved.keys() == stayed.keys()
    for step in range(1, STEPS + 1):
        for name in ("train/loss", "train/grad_norm", "train/lr", "train/tokens", "train/samples"):
            assert moved[step][name] == pytest.approx(stayed[step][name], rel=2e-5), (step, name)


@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00001.json", "metadata.json", "COMMITTED"])
def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(
    world: World, data: Path, tmp_path: Path, twin: Path, name: str
) -> None:
    run_dir = make_run(tmp_path / "damaged", data)
    launch(world, run_dir, 5)
    damaged = run_dir / "checkpoints/step-00000005/gen-1" / name
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x10
    damaged.write_bytes(content)
    assert launch(world, run_dir) == ["finished", "finished"]
    told = events(run_dir, "checkpoint_damaged")
    assert [(event["step"], event["generation"]) for event in told] == [(5, 1)]
    assert str(damaged) in told[0]["damage"][0]
    assert [event["step"] for event in events(run_dir, "resume")] == [4]
    assert losses(run_dir) == losses(twin)


def test_with_every_checkpoint_damaged_the_run_refuses_to_start_anew(world: World, data: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "lost", data)
    launch(world, run_dir, 2)
    for file in (run_dir / "checkpoints").rglob("metadata.json"):
        file.write_text("{}")
    ends = launch(world, run_dir)
    assert all(end.startswith("CheckpointError: every checkpoint of") for end in ends)
    assert all("metadata.json" in end for end in ends)


def changed(run_dir: Path, data: Path, other_data: Path) -> list[tuple[dict[str, Any], str]]:
    """Changes that the launcher would stop, and what the ranks say should one come through."""
    return [
        (
            {"model": {"num_layers": 3}},
            "CheckpointError: the checkpoint of step 2 is of another model: model.num_layers was 2",
        ),
        (
            {"data": {"dir": str(other_data)}},
            f"DataError: {other_data}: the training samples or their order are not those",
        ),
        ({"run": {"dir": str(run_dir), "seed": 5}}, f"DataError: {data}: the training samples or their order"),
        ({"layout": {"pp": 1}}, "ConfigError: layout pp=1 dp=1 tp=1 has 1 ranks, the world has 2; start as many"),
    ]


def test_what_a_run_cannot_go_on_with_is_named_on_every_rank(world: World, data: Path, tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "changed", data)
    launch(world, run_dir, 2)
    for changes, told in changed(run_dir, data, make_data(tmp_path / "data", seed=9)):
        make_run(run_dir, data, **changes)
        ends = launch(world, run_dir)
        assert all(end.startswith(told) for end in ends), ends
    make_run(run_dir, data)
    assert launch(world, run_dir) == ["finished", "finished"]


def test_the_summary_of_a_run_holds_what_a_reader_wants_to_know(twin: Path) -> None:
    summary = events(twin, "finish")[-1]["summary"]
    assert summary["steps"] == STEPS
    assert summary["eval/loss"] > 0
    assert summary["eval/bits_per_byte"] > 0
    assert summary["eval/bigram_loss"] > 0
    assert summary["eval/uniform_loss"] == pytest.approx(4.605, abs=1e-3)
    assert summary["checkpoint"].endswith("step-00000006/gen-1")
