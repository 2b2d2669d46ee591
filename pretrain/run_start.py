"""What a launch of a run starts from: its folder and data, and the last checkpoint with the order of samples that it left."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pretrain.checkpoint.format import (
    CheckpointRef,
    Metadata,
    allowed_of_launch,
    check_same_model,
    committed_checkpoints,
)
from pretrain.checkpoint.load import find_checkpoint, read_run_state
from pretrain.config import RunConfig
from pretrain.data.feed import Feed
from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.data.token_shards import Manifest, read_token_bytes
from pretrain.errors import CheckpointError, DataError
from pretrain.metrics.run_logs import RunLogs
from pretrain.metrics.tracker import ensure_wandb_id
from pretrain.parallel.agreement import world_sum
from pretrain.parallel.mesh import ProcessMesh
from pretrain.resumed_order import RunOrder, fresh_order, resumed_order


@dataclass(frozen=True)
class Launch:
    """One launch of a run, as a rank sees it before anything is built."""

    config: RunConfig
    """Resolved."""
    run_dir: Path
    generation: int
    manifest: Manifest
    """Of the data."""
    wandb_id: str | None
    """Of rank 0, which alone needs it."""
    logs: RunLogs


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run goes on from."""

    ref: CheckpointRef
    metadata: Metadata
    damaged: tuple[CheckpointRef, ...]
    """Newer ones that could not be used."""


def find_start(launch: Launch, mesh: ProcessMesh) -> Start | None:
    """The newest whole checkpoint of this run, None for a fresh start; damaged ones are told and passed over.

    Raises CheckpointError where all are damaged or are of another model, DataError where the tokenizer is another.
    """

    damaged: list[CheckpointRef] = []

    def report(ref: CheckpointRef, damage: list[str]) -> None:
        damaged.append(ref)
        told = f"the checkpoint of step {ref.step:,} is damaged, the one before it is tried: {damage[0]}"
        launch.logs.event("checkpoint_damaged", told, step=ref.step, generation=ref.generation, damage=damage)

    ref = find_checkpoint(launch.run_dir, mesh, report)
    if ref is None:
        return None
    metadata = read_run_state(ref)
    check_same_model(metadata, launch.config.model.model_dump(mode="json"))
    before, now = metadata.state.tokenizer_hash, launch.manifest.tokenizer_hash
    if before != now:
        raise DataError(
            f"{launch.config.data.dir}: its tokenizer ({now}) is not the one that the checkpoint of step {ref.step} was "
            f"trained with ({before}); point data.dir at the run's own data"
        )
    return Start(ref, metadata, tuple(damaged))


def wandb_id(run_dir: Path) -> str:
    """The id under which W&B knows the run: the folder's, else that of its newest readable checkpoint, else a new one."""
    for ref in committed_checkpoints(run_dir):
        try:
            return ensure_wandb_id(run_dir, read_run_state(ref).state.wandb_id)
        except CheckpointError:
            continue
    return ensure_wandb_id(run_dir)


def order_of(launch: Launch, feed: Feed, start: Start | None) -> RunOrder:
    """Puts the feed where the run stands. Raises DataError where the order of samples changed unasked."""
    batch = launch.config.global_batch_sequences
    if start is None:
        return fresh_order(feed, batch)
    allowed = allowed_of_launch(launch.run_dir, launch.generation)
    return resumed_order(feed, start.metadata.state, start.ref.step, batch, allowed, launch.config.data.dir)


def target_bytes(launch: Launch, validation: Mapping[str, Sequence[MicroBatch]], mesh: ProcessMesh) -> int:
    """Bytes of text that the validation targets of all data ranks stand for; every rank calls it."""
    token_bytes = torch.from_numpy(read_token_bytes(launch.config.data.folder, launch.manifest).astype("int64"))
    mine = sum(
        int(token_bytes[batch.labels[batch.labels != IGNORED]].sum())
        for batches in validation.values()
        for batch in batches
    )
    # Ranks that differ in any other coordinate than that of the batch read the same rows.
    return round(world_sum([float(mine)], mesh)[0] * mesh.batch.size / mesh.layout.world_size)
