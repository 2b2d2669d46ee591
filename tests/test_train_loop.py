"""The loop over a fake engine, in one process: what it logs, when it saves, and how it stops."""

import errno
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from pretrain.checkpoint.format import CheckpointRef, committed_checkpoints
from pretrain.checkpoint.load import read_run_state, restore
from pretrain.checkpoint.tensor_file import HashedFile
from pretrain.config import RunConfig
from pretrain.data.batches import Batches
from pretrain.data.follow import Starved
from pretrain.data.micro_batch import MicroBatch
from pretrain.data.plan_segments import PlanSegment
from pretrain.data.token_shards import Manifest
from pretrain.engine.protocol import StepResult
from pretrain.errors import CheckpointError, DataError, Interrupted, Preempted, RankFault, StorageError
from pretrain.guard.anomalies import SkippedSteps
from pretrain.guard.preemption import StopReason, StopSignals
from pretrain.metrics.console import RunConsole
from pretrain.metrics.run_logs import RunLogs
from pretrain.metrics.step_values import Arithmetic
from pretrain.parallel.mesh import ProcessMesh
from pretrain.run_start import Launch
from pretrain.train import Training
from tests.checkpoint.fake_engine import FakeEngine, launch, micro_batch, trained_engine
from tests.data.folders import text_documents, write_folder

MESH = ProcessMesh.single()


@dataclass
class Recorder:
    """A tracker that keeps what it is told."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def start(self, config: object, facts: object) -> None:
        pass

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        self.rows.append((step, dict(values)))

    def log_event(self, kind: str, **fields: Any) -> None:
        self.events.append({"kind": kind, **fields})

    def finish(self, summary: object, *, exit_code: int = 0) -> None:
        pass

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


class FakeBatches:
    """As much of Batches as the loop uses; a step's batch is a function of the step."""

    plan_hash = "plan"
    wait_s = 0.0
    source_epochs: Mapping[str, float] = {}
    starved_at: int | None = None

    def __init__(self, first_step: int) -> None:
        self.step = first_step

    @property
    def next_sample(self) -> int:
        return self.step

    @property
    def passes(self) -> float:
        return self.step / 100

    @property
    def source_samples(self) -> dict[str, int]:
        return {"main": self.step}

    def __iter__(self) -> Iterator[Sequence[MicroBatch]]:
        return self

    def __next__(self) -> Sequence[MicroBatch]:
        if self.step == self.starved_at:
            raise Starved("the folder: preparation has stopped")
        self.step += 1
        return [micro_batch(self.step - 1)]


def config(run_dir: Path, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "name": "loop",
        "run": {"dir": str(run_dir)},
        "model": {"d_model": 4, "num_layers": 2, "num_heads": 1, "d_ff": 8, "vocab_size": 100},
        "layout": {"dp": 1},
        "data": {"dir": str(run_dir / "data"), "sequence_length": 6},
        "train": {"steps": 6, "global_batch_tokens": 6, "micro_batch_sequences": 1, "precision": "fp32"},
        "checkpoint": {"interval_steps": 2},
        "evaluation": {"baseline": "none"},
    }
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return RunConfig.model_validate(tree)


def training(run_dir: Path, engine: FakeEngine | None = None, generation: int = 1, **changes: Any) -> Training:
    launch(run_dir, generation)
    chosen = config(run_dir, **changes)
    manifest = cast("Manifest", type("Data", (), {"tokenizer_hash": "tokenizer"})())
    logs = RunLogs(RunConsole(Console(quiet=True)), Recorder())
    engine = engine or FakeEngine(MESH)
    return Training(
        launch=Launch(chosen, run_dir, generation, manifest, "wandb-id", logs),
        engine=engine,
        batches=cast("Batches", FakeBatches(engine.step)),
        segments=(PlanSegment(global_batch_sequences=1, plan_hash="plan"),),
        validation={"main": [micro_batch(1000)]},
        validation_bytes=12,
        arithmetic=Arithmetic(flops_per_token=1e6, num_devices=1, peak_flops=None),
        stop=StopSignals(),
        skipped=SkippedSteps(chosen.optimizer.max_skipped_in_a_row),
    )


def recorder(run: Training) -> Recorder:
    assert isinstance(run.logs.tracker, Recorder)
    return run.logs.tracker


def saved_steps(run_dir: Path) -> list[int]:
    return [ref.step for ref in committed_checkpoints(run_dir)]


def test_each_step_is_one_row_and_evaluations_are_in_the_row_of_their_step(tmp_path: Path) -> None:
    run = training(tmp_path, evaluation={"interval_steps": 4})
    run.run()
    rows = recorder(run).rows
    assert [step for step, _ in rows] == [0, 1, 2, 3, 4, 5, 6]
    assert [step for step, values in rows if "eval/loss" in values] == [0, 4, 6]
    assert [values["train/tokens"] for _, values in rows[1:]] == [6, 12, 18, 24, 30, 36]
    assert [step for step, values in rows if "checkpoint/save_s" in values] == [3, 5]


def test_the_row_of_a_step_tells_the_loss_of_the_sources_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path)
    step = run.engine.train_step
    run.engine.train_step = lambda microbatches: replace(step(microbatches), loss_by_source=(4.5, None))
    monkeypatch.setattr(FakeBatches, "source_samples", {"web": 3, "notes": 0})
    run.run()
    _, values = recorder(run).rows[0]
    assert {name: value for name, value in values.items() if name.startswith("train/loss/")} == {"train/loss/web": 4.5}


def test_without_an_interval_the_end_alone_is_evaluated(tmp_path: Path) -> None:
    run = training(tmp_path)
    summary = run.run()
    assert [step for step, values in recorder(run).rows if "eval/loss" in values] == [6]
    assert summary["eval/loss"] == pytest.approx(4 - 0.25)
    assert summary["eval/bits_per_byte"] == pytest.approx((4 - 0.25) * 6 / 0.6931471805599453 / 12)
    assert summary["eval/loss_past_middle"] < summary["eval/loss"]
    assert summary["steps"] == 6


def test_checkpoints_are_saved_at_the_interval_and_at_the_end_and_old_ones_go(tmp_path: Path) -> None:
    run = training(tmp_path, train={"steps": 5, "global_batch_tokens": 6, "micro_batch_sequences": 1})
    run.run()
    assert [event["step"] for event in recorder(run).of_kind("checkpoint")] == [2, 4, 5]
    assert saved_steps(tmp_path) == [5, 4]
    state = read_run_state(CheckpointRef.at(tmp_path, 5, 1)).state
    assert (state.next_sample, state.targets, state.plan_hash, state.wandb_id) == (5, 30, "plan", "wandb-id")


def test_a_resumed_run_logs_the_same_rows_bit_for_bit(tmp_path: Path) -> None:
    (tmp_path / "twin").mkdir()
    twin = training(tmp_path / "twin")
    twin.run()
    first = training(tmp_path)
    first.stop.reason = StopReason.PREEMPTED
    with pytest.raises(Preempted):
        first.run()
    engine = FakeEngine(MESH)
    metadata = restore(engine, CheckpointRef.at(tmp_path, 1, 1))
    second = training(tmp_path, engine, generation=2)
    second.targets = metadata.state.targets
    second.run()
    rows = [*recorder(first).rows, *recorder(second).rows]
    assert [step for step, _ in rows] == [1, 2, 3, 4, 5, 6]
    for (_, mine), (_, expected) in zip(rows, recorder(twin).rows, strict=True):
        for name in expected:
            if name.startswith(("train/", "eval/")):
                assert mine[name] == expected[name], name


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [(signal.SIGINT, Interrupted, 130), (signal.SIGTERM, Preempted, 75), (signal.SIGUSR1, Preempted, 75)],
)
def test_a_signal_lets_the_step_end_saves_and_stops(
    tmp_path: Path, number: signal.Signals, kind: type[Exception], code: int
) -> None:
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        run = training(tmp_path)
        run.stop = StopSignals.install()
        step = run.engine.train_step

        def train_step(microbatches: Sequence[MicroBatch]) -> StepResult:
            if run.engine.step == 2:
                os.kill(os.getpid(), number)
            return step(microbatches)

        run.engine.train_step = train_step
        with pytest.raises(kind, match="after step 3 of 6; its checkpoint is saved") as caught:
            run.run()
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert caught.value.exit_code == code  # type: ignore[attr-defined]
    assert saved_steps(tmp_path) == [3, 2]
    assert [step for step, _ in recorder(run).rows] == [1, 2, 3]


def test_ctrl_c_outweighs_a_preemption_and_a_stop_at_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    signals = StopSignals()
    signals._note(signal.SIGINT, None)
    signals._note(signal.SIGTERM, None)
    assert signals.reason is StopReason.INTERRUPTED
    run = training(tmp_path, trained_engine(5))
    run.stop.reason = StopReason.PREEMPTED
    assert run.run()["steps"] == 6


@pytest.mark.parametrize(("starved_at", "saved"), [(3, [3, 2]), (2, [2]), (0, [])])
def test_a_run_whose_preparation_died_saves_what_it_has(tmp_path: Path, starved_at: int, saved: list[int]) -> None:
    run = training(tmp_path, data={"manifest": "follow", "order": {"method": "eras"}})
    cast("FakeBatches", run.batches).starved_at = starved_at
    kept = f"its checkpoint of step {starved_at} is saved" if saved else "it has no checkpoint"
    with pytest.raises(DataError, match=rf"preparation has stopped\nthe run stands at step {starved_at}, {kept}"):
        run.run()
    assert saved_steps(tmp_path) == saved


def test_a_full_disk_at_an_interval_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path)
    write = HashedFile.write

    def write_unless_step_two(self: HashedFile, data: bytes | memoryview) -> None:
        if run.engine.step == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(HashedFile, "write", write_unless_step_two)
    run.run()
    failed = recorder(run).of_kind("checkpoint_failed")
    assert [event["step"] for event in failed] == [2]
    assert "disk full" in failed[0]["cause"]
    assert saved_steps(tmp_path) == [6, 4]
    assert [step for step, _ in recorder(run).rows] == [1, 2, 3, 4, 5, 6]


def test_a_full_disk_at_the_end_is_an_error_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = training(tmp_path)
    write = HashedFile.write

    def write_until_the_end(self: HashedFile, data: bytes | memoryview) -> None:
        if run.engine.step == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data)

    monkeypatch.setattr(HashedFile, "write", write_until_the_end)
    with pytest.raises(StorageError, match="disk full"):
        run.run()
    assert saved_steps(tmp_path) == [4, 2]


def test_a_checkpoint_that_is_damaged_as_it_is_written_is_found_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def damage(self: Path, target: Path) -> Path:
        file = self / "rank-00000.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 4
        file.write_bytes(content)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", damage)
    with pytest.raises(CheckpointError, match=r"just written is damaged: .*rank-00000\.safetensors"):
        training(tmp_path).run()


def test_a_skipped_step_is_counted_told_and_no_reason_to_stop(tmp_path: Path) -> None:
    engine = FakeEngine(MESH)
    engine.poisoned_steps = {2, 4}
    run = training(tmp_path, engine, optimizer={"max_skipped_in_a_row": 2})
    summary = run.run()
    assert [event["step"] for event in recorder(run).of_kind("skipped_step")] == [3, 5]
    assert [values["train/skipped_steps"] for _, values in recorder(run).rows] == [0, 0, 1, 1, 2, 2]
    assert summary["train/skipped_steps"] == 2
    assert read_run_state(CheckpointRef.at(tmp_path, 6, 1)).state.skipped_steps == 2


def test_too_many_skipped_steps_in_a_row_stop_the_run_with_what_to_do(tmp_path: Path) -> None:
    engine = FakeEngine(MESH)
    engine.poisoned_steps = {1, 3, 4}
    run = training(tmp_path, engine, optimizer={"max_skipped_in_a_row": 2})
    with pytest.raises(RankFault, match=r"step 5: .*2 steps in a row .*optimizer\.peak_lr"):
        run.run()
    assert [step for step, _ in recorder(run).rows] == [1, 2, 3, 4, 5]
    assert saved_steps(tmp_path) == [4, 2]


def test_the_bigram_baseline_is_part_of_the_summary(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", text_documents(30, seed=1), text_documents(9, seed=2))
    run = training(tmp_path, evaluation={"baseline": "bigram"})
    summary = run.run()
    assert 3.0 < summary["eval/bigram_loss"] < 6.0
    assert summary["eval/uniform_loss"] == pytest.approx(4.605, abs=1e-3)
