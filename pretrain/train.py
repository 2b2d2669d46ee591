"""Training, as each rank runs it: `python -m pretrain.train --run RUN --generation G`, started by the launcher.

Read from the top: `train` builds the parts of a run and goes to its last checkpoint, `Training.run` is the loop. There
is one loop for every model, layout and objective: what varies sits behind the engine, the batches and the config. Rank
0 alone writes metrics, of values that are reduced already. What a rank computes depends on the step and the config
alone, so that a run that was killed repeats its steps bit for bit.
"""

import argparse
import math
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.checkpoint.format import (
    CheckpointRef,
    RunState,
)
from pretrain.checkpoint.load import restore, verify_together
from pretrain.checkpoint.prune import prune
from pretrain.checkpoint.save import save
from pretrain.config import RunConfig, read_resolved
from pretrain.data.batches import Batches, check_slices
from pretrain.data.bigram import bigram_baseline
from pretrain.data.feed import Feed
from pretrain.data.follow import Starved
from pretrain.data.micro_batch import MicroBatch
from pretrain.data.plan import check_epochs
from pretrain.data.plan_segments import PlanSegment
from pretrain.data.token_shards import read_manifest
from pretrain.data.validation import validation_by_source
from pretrain.engine.build import build_engine
from pretrain.engine.protocol import Engine, EvaluationResult, StepResult
from pretrain.engine.world import end_world, start_world
from pretrain.errors import CheckpointError, ConfigError, StorageError
from pretrain.guard.anomalies import SkippedSteps
from pretrain.guard.fault_file import as_told, leave, run_rank
from pretrain.guard.parent import die_with_parent
from pretrain.guard.preemption import StopReason, StopSignals
from pretrain.metrics.run_logs import RunLogs, announce, arithmetic_of, layout_sizes, open_logs, overview
from pretrain.metrics.step_values import (
    Arithmetic,
    Progress,
    StepCost,
    evaluation_values,
    source_losses,
    source_values,
    step_time_values,
    step_values,
    training_losses,
)
from pretrain.metrics.usage import device_peak_bytes, host_bytes
from pretrain.parallel.agreement import gather_texts, world_maximum
from pretrain.parallel.mesh import ProcessMesh
from pretrain.resumed_order import RunOrder
from pretrain.run_start import Launch, Start, find_start, order_of, target_bytes, wandb_id

STEP_TIMES_KEPT = 100
"""Steps over which percentiles of the step time are taken."""
BASELINE_MAX_TARGETS = 50_000_000
"""Beyond it the bigram baseline is left out: its counts are sorted in the memory of rank 0, for some ten seconds at this size."""


def main(arguments: Sequence[str] | None = None) -> int:
    """A rank from its start to its exit code."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m pretrain.train", description="One rank of a run.")
    parser.add_argument("--run", required=True, type=Path, help="the run's folder, with its resolved config.yaml")
    parser.add_argument("--generation", required=True, type=int, help="number of this launch of the run")
    chosen = parser.parse_args(arguments)

    def work() -> None:
        train(chosen.run, chosen.generation, StopSignals.install())
        end_world()

    code = run_rank(work, chosen.run, chosen.generation, int(os.environ.get("RANK", "0")))
    StopSignals.dismiss()
    return code


def train(run_dir: Path, generation: int, stop: StopSignals) -> None:
    """Trains a run from where it stands to its end.

    Raises PretrainError of every kind; Preempted and Interrupted where a signal ended it with a checkpoint.
    """
    config = read_resolved(run_dir)
    mesh = _join_world(config, generation)
    manifest = read_manifest(config.data.folder)
    name = wandb_id(run_dir) if mesh.rank == 0 else None
    logs = open_logs(config, run_dir, generation, name, manifest, mesh)
    launch = Launch(config, run_dir, generation, manifest, name, logs)
    try:
        training = build(launch, mesh, find_start(launch, mesh), stop)
        with training.batches:
            summary = training.run()
    except BaseException as error:
        logs.console.close()
        told = as_told(error)
        logs.tracker.finish({"end": str(told)}, exit_code=told.exit_code)
        raise
    logs.console.close()
    logs.tracker.finish(summary)


def build(launch: Launch, mesh: ProcessMesh, start: Start | None, stop: StopSignals) -> "Training":
    """The parts of a run, at the step where it starts."""
    config = launch.config
    engine = build_engine(config, mesh, config.train.steps)
    load_s = _restore(engine, start)
    rows = {
        "micro_batch_sequences": config.train.micro_batch_sequences,
        "data_rank": mesh.batch.rank,
        "data_size": mesh.batch.size,
    }
    check_slices(config.global_batch_sequences, rows["micro_batch_sequences"], rows["data_size"])
    tell = launch.logs.console.message
    feed = Feed(config.data, config.run.seed, tell)
    order = order_of(launch, feed, start)
    repeats = _repeats(config, feed, order)
    validation = validation_by_source(config.data, sequences=config.evaluation.sequences, tell=tell, **rows)
    batches = Batches(
        feed,
        global_batch_sequences=config.global_batch_sequences,
        first_step=engine.step,
        prefetch=config.data.prefetch,
        memory="pinned" if mesh.device.type == "cuda" else "pageable",
        **rows,
    )
    _tell(launch, engine, start, order, (*batches.notes, *repeats), load_s)
    return Training(
        launch=launch,
        engine=engine,
        batches=batches,
        segments=order.segments,
        validation=validation,
        validation_bytes=target_bytes(launch, validation, mesh),
        arithmetic=arithmetic_of(config, mesh),
        stop=stop,
        skipped=SkippedSteps(config.optimizer.max_skipped_in_a_row),
        targets=start.metadata.state.targets if start else 0,
        checkpoint=start.ref if start else None,
        damaged=start.damaged if start else (),
    )


def _restore(engine: Engine, start: Start | None) -> float:
    """Goes to the checkpoint, if there is one; returns the seconds that it took."""
    begin = time.monotonic()
    if start is not None:
        restore(engine, start.ref)
    return time.monotonic() - begin


def _tell(
    launch: Launch, engine: Engine, start: Start | None, order: RunOrder, notes: Sequence[str], load_s: float
) -> None:
    told = overview(launch.config, launch.manifest, engine, start.ref.path if start else None)
    announce(launch.logs, told, notes, launch.generation, load_s)
    if order.told is not None:
        launch.logs.event("order_segment", order.told, **order.segments[-1].model_dump(mode="json"))


def _repeats(config: RunConfig, feed: Feed, order: RunOrder) -> Sequence[str]:
    """Sentences on sources that the run reads more than once. Raises DataError above data.order.max_epochs."""
    segment = order.segments[-1]
    return check_epochs(config.data, feed.plan, segment.place(segment.sample(config.train.steps)))


@dataclass
class Training:
    """A run under way on one rank."""

    launch: Launch
    engine: Engine
    batches: Batches
    segments: tuple[PlanSegment, ...]
    """Of the order of samples; see `plan_segments`."""
    validation: Mapping[str, Sequence[MicroBatch]]
    """By source of the data."""
    validation_bytes: int
    """Bytes of text that all validation targets stand for."""
    arithmetic: Arithmetic
    stop: StopSignals
    skipped: SkippedSteps
    targets: int = 0
    """Valid targets trained on so far."""
    checkpoint: CheckpointRef | None = None
    """The last one."""
    damaged: tuple[CheckpointRef, ...] = ()
    """Checkpoints that the start passed over."""
    evaluation: dict[str, float] = field(default_factory=dict)
    """Values of the last one."""
    step_times_s: deque[float] = field(default_factory=lambda: deque(maxlen=STEP_TIMES_KEPT))
    save_cost: dict[str, float] = field(default_factory=dict)
    """Of the last save; it goes into the row of the next step, for a step's own row is written before its checkpoint."""

    @property
    def config(self) -> RunConfig:
        """Of the run."""
        return self.launch.config

    @property
    def logs(self) -> RunLogs:
        """Where it tells what it does."""
        return self.launch.logs

    def run(self) -> dict[str, Any]:
        """The loop. Returns the summary; raises Preempted or Interrupted after a checkpoint where a signal asks for it."""
        total, tracker = self.config.train.steps, self.logs.tracker
        if self.engine.step == 0 and self.config.evaluation.interval_steps is not None:
            tracker.log_step(0, self._evaluate())
        while self.engine.step < total:
            result, cost, reason = self._step()
            step = self.engine.step
            last, stopping = step == total, reason is not StopReason.NONE
            values = self._values(result, cost)
            # A scheduler that takes the machine gives seconds: enough for a checkpoint, not for an evaluation.
            if last or (self._is_evaluated(step) and not stopping):
                values |= self._evaluate()
            # Before the checkpoint: a committed step is never run again, and its row would be missing for ever.
            tracker.log_step(step, values)
            self.skipped.check(step, result)
            if last or stopping:
                self._save()
            elif step % self.config.checkpoint.interval_steps == 0:
                self._try_to_save()
            if stopping and not last:
                raise reason.error(step, total)
        return self._finish()

    def _step(self) -> tuple[StepResult, StepCost, StopReason]:
        """One step, what it cost, and whether any rank was asked to stop; the same on every rank."""
        mesh, begin = self.engine.mesh, time.perf_counter()
        result = self.engine.train_step(self._batch())
        figures = [time.perf_counter() - begin, self.batches.wait_s, device_peak_bytes(mesh.device), host_bytes()]
        *largest, reason = world_maximum([*figures, float(self.stop.reason)], mesh)
        self.targets += result.targets
        return result, StepCost(*largest), StopReason(int(reason))

    def _batch(self) -> Sequence[MicroBatch]:
        """This rank's micro-batches of the next step.

        Raises what reading them does. Where the preparation that the run follows died, ranks may meet it at different steps, for
        each reads rows of its own: they agree, save a checkpoint together, and all raise Starved.
        """
        if self.config.data.manifest == "finished":
            return next(self.batches)
        found, told = None, ""
        try:
            found = next(self.batches)
        except Starved as error:
            told = str(error)
        if not world_maximum([float(found is None)], self.engine.mesh)[0]:
            assert found is not None
            return found
        if found is not None:
            self.batches.put_back()
        reached, told = self.engine.step, next(filter(None, gather_texts(told, self.engine.mesh)))
        if reached and (self.checkpoint is None or self.checkpoint.step < reached):
            self._try_to_save()
        kept = (
            f"its checkpoint of step {self.checkpoint.step:,} is saved" if self.checkpoint else "it has no checkpoint"
        )
        raise Starved(f"{told}\nthe run stands at step {reached:,}, {kept}")

    def _values(self, result: StepResult, cost: StepCost) -> dict[str, float]:
        """The row of the step; what of it concerns a reader is told at once."""
        step, console = self.engine.step, self.logs.console
        batches = self.batches
        progress = Progress(self.targets, batches.next_sample, batches.passes, self.engine.skipped_steps)
        self.step_times_s.append(cost.duration_s)
        values = step_values(result, cost, self.arithmetic, progress) | self.save_cost
        samples = batches.source_samples
        values |= source_values(samples, batches.source_epochs, self.config.data.sequence_length)
        values |= training_losses(result.loss_by_source, tuple(samples))
        self.save_cost = {}
        if result.skipped:
            told = f"step {step:,} is skipped on all ranks: its gradient is not finite"
            self.logs.event("skipped_step", told, step=step, grad_norm=result.grad_norm, loss=result.loss)
        if step % self.config.logging.interval_steps == 0 or step == self.config.train.steps:
            values |= step_time_values(self.step_times_s)
            console.step(step, values)
        console.tick(step)
        return values

    def _is_evaluated(self, step: int) -> bool:
        interval = self.config.evaluation.interval_steps
        return interval is not None and step % interval == 0

    def _evaluate(self) -> dict[str, float]:
        parts = {name: self.engine.evaluate(batches) for name, batches in self.validation.items()}
        whole = evaluation_values(EvaluationResult.sum([*parts.values()]), self.validation_bytes)
        self.evaluation = whole | source_losses(parts)
        told = ("eval/loss", "eval/perplexity", "eval/bits_per_byte")
        self.logs.console.evaluation(self.engine.step, {n: v for n, v in self.evaluation.items() if n in told})
        return self.evaluation

    def _try_to_save(self) -> None:
        """Saves; a full disk is told, and training goes on to the next interval: there may be room by then."""
        try:
            self._save()
        except StorageError as error:
            told = f"no checkpoint of step {self.engine.step:,}, training goes on: {error}"
            self.logs.event("checkpoint_failed", told, step=self.engine.step, cause=str(error))

    def _save(self) -> None:
        saved = save(self.engine, self.launch.run_dir, self.launch.generation, self._state())
        self.checkpoint = saved.ref
        self.save_cost = {"checkpoint/save_s": saved.duration_s, "checkpoint/bytes": float(saved.num_bytes)}
        fields = {"step": saved.ref.step, "path": str(saved.ref.path)}
        self.logs.tracker.log_event("checkpoint", save_s=saved.duration_s, bytes=saved.num_bytes, **fields)
        if self.engine.mesh.rank == 0:
            try:
                prune(self.launch.run_dir, saved.ref, self.config.checkpoint.keep, self.damaged)
            except OSError as error:
                told = f"an old checkpoint could not be deleted: {error}"
                self.logs.event("prune_failed", told, cause=str(error))

    def _state(self) -> RunState:
        return RunState(
            model=self.config.model.model_dump(mode="json"),
            layout=layout_sizes(self.config),
            precision=self.config.train.precision,
            next_sample=self.batches.next_sample,
            source_samples=self.batches.source_samples,
            segments=self.segments,
            targets=self.targets,
            skipped_steps=self.engine.skipped_steps,
            loss_scale=self.engine.loss_scale,
            plan_hash=self.batches.plan_hash,
            tokenizer_hash=self.launch.manifest.tokenizer_hash,
            wandb_id=self.launch.wandb_id,
        )

    def _finish(self) -> dict[str, Any]:
        """Reads the last checkpoint back, and sums the run up. Raises CheckpointError where it is damaged."""
        assert self.checkpoint is not None and self.config.model.vocab_size is not None
        if damage := verify_together(self.checkpoint, self.engine.mesh):
            raise CheckpointError(f"the checkpoint that was just written is damaged: {damage[0]}")
        self.logs.console.message(f"checkpoint of step {self.engine.step:,}, verified: {self.checkpoint.path}")
        return {
            "steps": self.engine.step,
            "train/tokens": self.targets,
            "train/skipped_steps": self.engine.skipped_steps,
            **self.evaluation,
            "eval/uniform_loss": math.log(self.config.model.vocab_size),
            **self._baseline(),
            "checkpoint": str(self.checkpoint.path),
        }

    def _baseline(self) -> dict[str, float]:
        """Loss of the bigram model that is fitted on the targets that the model saw, judged on the same validation set."""
        wanted = self.config.evaluation.baseline == "bigram" and self.engine.mesh.rank == 0
        if not wanted or self.targets > BASELINE_MAX_TARGETS:
            return {}
        loss = bigram_baseline(
            self.config.data,
            seed=self.config.run.seed,
            global_batch_sequences=self.config.global_batch_sequences,
            steps=self.engine.step,
            sequences=self.config.evaluation.sequences,
        )
        self.logs.console.message(
            f"baseline: a bigram model of the same training tokens has validation loss {loss:.4f}"
        )
        return {"eval/bigram_loss": loss}


def _join_world(config: RunConfig, generation: int) -> ProcessMesh:
    device = start_world(config.train.device, generation)
    try:
        return ProcessMesh.create(config.parallel_layout, device)
    except ValueError as error:
        raise ConfigError(f"{error}; start as many ranks as the layout has") from None


if __name__ == "__main__":
    leave(main())
