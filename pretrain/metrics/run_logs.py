"""The logs of one rank of a run: console and tracker on rank 0, silence on the others; and what is told once, at the start.

The loop talks to both without asking which rank it is on.
"""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from pretrain.config import RunConfig
from pretrain.data.token_shards import Manifest
from pretrain.engine.protocol import Engine
from pretrain.metrics.console import Batch, RunConsole, RunOverview
from pretrain.metrics.facts import collect_facts
from pretrain.metrics.step_values import Arithmetic
from pretrain.metrics.tracker import CompositeTracker, Tracker, open_tracker
from pretrain.model.flops import flops_per_token
from pretrain.model.layers import build_layers
from pretrain.parallel.agreement import gather_texts
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh
from pretrain.plan.hardware import bf16_peak_flops


@dataclass(frozen=True)
class RunLogs:
    """Where a rank tells what it does."""

    console: RunConsole
    tracker: Tracker

    def event(self, kind: str, message: str, **fields: Any) -> None:
        """Something beside the steps: a row of events.jsonl and a line for whoever watches."""
        self.tracker.log_event(kind, **fields)
        self.console.message(message)


def open_logs(
    config: RunConfig, run_dir: Path, generation: int, wandb_id: str | None, manifest: Manifest, mesh: ProcessMesh
) -> RunLogs:
    """Opens the logs and notes config and facts of this launch; every rank calls it.

    Raises StorageError where the run's folder cannot be written.
    """
    hosts = list(dict.fromkeys(gather_texts(platform.node(), mesh)))
    if mesh.rank != 0:
        return RunLogs(RunConsole(Console(quiet=True)), CompositeTracker())
    console = RunConsole()
    assert wandb_id is not None
    tracker = open_tracker(
        run_dir,
        config.logging,
        name=config.name,
        attempt=generation,
        wandb_id=wandb_id,
        complain=console.message,
    )
    facts = collect_facts(
        layout=layout_sizes(config),
        seed=config.run.seed,
        precision=config.train.precision,
        device=config.train.device,
        hosts=hosts,
        manifest_hash=manifest.hash,
        tokenizer_hash=manifest.tokenizer_hash,
    )
    tracker.start(config.model_dump(mode="json"), {**facts, "stages": _stage_names(config, mesh)})
    return RunLogs(console, tracker)


def layout_sizes(config: RunConfig) -> dict[str, int]:
    """The layout as records keep it."""
    return {**config.parallel_layout.sizes(), "zero_stage": config.layout.zero_stage}


def arithmetic_of(config: RunConfig, mesh: ProcessMesh) -> Arithmetic:
    """FLOPs of a token and the peak of a device, where it is known."""
    known = mesh.device.type == "cuda" and config.train.precision == "bf16"
    return Arithmetic(
        flops_per_token=flops_per_token(config.model, config.data.sequence_length, config.data.source_length),
        num_devices=mesh.layout.world_size,
        peak_flops=bf16_peak_flops(torch.cuda.get_device_name(mesh.device)) if known else None,
    )


def overview(config: RunConfig, manifest: Manifest, engine: Engine, checkpoint: Path | None) -> RunOverview:
    """What the banner tells of a run that goes on from `checkpoint`, or begins."""
    split = manifest.splits["train"]
    notes = {"data": f"{split.documents:,} documents, {split.tokens:,} tokens in {config.data.dir}"}
    if shared := _sharing(config):
        notes["work"] = ", ".join(shared)
    if checkpoint is not None:
        notes["resume"] = f"from {checkpoint}"
    return RunOverview(
        name=config.name,
        run_dir=config.run_dir,
        layout=engine.mesh.layout,
        zero_stage=config.layout.zero_stage,
        stages=_stage_names(config, engine.mesh),
        batch=Batch(
            sequence_length=config.data.sequence_length,
            micro_batch_sequences=config.train.micro_batch_sequences,
            global_batch_sequences=config.global_batch_sequences,
            data_ranks=engine.mesh.layout.dp,
        ),
        num_parameters=engine.num_parameters,
        precision=config.train.precision,
        device=config.train.device,
        first_step=engine.step,
        steps=config.train.steps,
        notes=notes,
    )


def _sharing(config: RunConfig) -> list[str]:
    """How the ranks share the work, beyond the sizes of the layout; what `auto` came to is said where it matters."""
    layout, train = config.layout, config.train
    told = []
    if (layout.tp > 1 and config.parallel_layout.pp > 1) or layout.sequence_parallel == "enabled":
        told.append(f"sequence parallelism {layout.sequence_parallel}")
    if layout.pipeline_schedule != "1f1b":
        told.append(f"{layout.pipeline_schedule} schedule")
    if layout.offload != "none":
        told.append(f"{layout.offload.replace('_', ' ')} in the host's memory")
    if train.recompute != "none":
        told.append(f"{train.recompute} recomputation")
    tiles = (("loss", train.loss_tile_tokens), ("feed-forward", train.feed_forward_tile_tokens))
    return told + [f"{name} in tiles of {tokens:,} tokens" for name, tokens in tiles if tokens]


def announce(logs: RunLogs, run: RunOverview, notes: Sequence[str], generation: int, load_s: float) -> None:
    """The banner, what the data has to tell, and for a later launch the event that marks it."""
    logs.console.start(run)
    for note in notes:
        logs.console.message(note)
    if generation > 1:
        told = f"launch {generation} of this run begins at step {run.first_step:,}"
        logs.event("resume", told, step=run.first_step, load_s=load_s)


def _stage_names(config: RunConfig, mesh: ProcessMesh) -> list[list[str]]:
    """Names of the layers of each pipeline stage, cut as the engine cuts them."""
    # DeepSpeed, which the module imports, must not be loaded before the world has started.
    from pretrain.engine.adapters import balance

    specs = build_layers(config.model, ModelMesh.of(mesh), seed=config.run.seed)
    bounds = balance([spec.cost for spec in specs], mesh.layout.pp)
    return [[spec.name for spec in specs[start:stop]] for start, stop in pairwise(bounds)]
