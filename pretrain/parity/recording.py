"""What the ranks run: build the engine, train and record; and, in a rank of its own, the reference."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from pretrain.config import RunConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.build import build_engine
from pretrain.engine.protocol import Engine, Fragment, StateKind
from pretrain.engine.world import start_world
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parity.reference import Batch, ReferenceModel
from pretrain.parity.reference_dropout import counter_dropout
from pretrain.parity.reference_training import ReferenceRun, train
from pretrain.parity.verdict import Recording

MicroBatches = Callable[[int, int], list[MicroBatch]]
"""(step, coordinate on the batch axis) to what that rank takes through the model."""


def copies(engine: Engine, kind: StateKind) -> list[Fragment]:
    """The fragments of a kind, with copies of their tensors in the host's memory."""
    return [replace(f, tensor=f.tensor.detach().cpu().clone()) for f in engine.fragments() if f.kind == kind]


def unsettle(engine: Engine) -> None:
    """Moves every vector (norm gains, biases) off its initial 1 or 0, where many a fault with it would not show.

    By global name, so the same in every layout. It also puts rounding noise in proportion: a bias of a few learning rates is
    noise of Adam in good part.
    """
    for fragment in engine.fragments():
        shard = fragment.shard
        if fragment.kind == "weight" and (len(shard.shape) == 1 or shard.name.endswith(".bias")):
            generator = torch.Generator().manual_seed(zlib.crc32(fragment.shard.name.encode()))
            whole = torch.empty(fragment.shard.shape).uniform_(-0.3, 0.3, generator=generator)
            local = torch.zeros(fragment.local_shape)
            fragment.shard.real(local).copy_(fragment.shard.of(whole))
            moved = local.view(-1)[fragment.start : fragment.start + len(fragment.tensor)]
            fragment.tensor.add_(moved.to(fragment.tensor.device))
    engine.finish_load(0)


def nudge(engine: Engine, seed: int) -> None:
    """Multiplies every weight by 1 + or - 2^-23, at random: the least that rounding to fp32 may do to it."""
    for fragment in engine.fragments():
        if fragment.kind == "weight":
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {fragment.shard.name}".encode()))
            signs = torch.randint(0, 2, fragment.tensor.shape, generator=generator) * 2 - 1
            fragment.tensor.mul_(1 + signs.to(fragment.tensor) * 2.0**-23)
    engine.finish_load(0)


def start(config: RunConfig, total_steps: int) -> Engine:
    """The engine of a config; every rank of the world calls it."""
    device = start_world("cuda" if config.train.device == "cuda" else "cpu")
    return build_engine(config, ProcessMesh.create(config.parallel_layout, device), total_steps)


def record(
    config: RunConfig, micro_batches: MicroBatches, steps: int, total_steps: int, nudged: int | None = None
) -> Recording:
    """Trains under a config's layout and gives back what parity compares; every rank of the world calls it.

    Args:
        config: resolved.
        micro_batches: what each rank takes through the model.
        steps: how many.
        total_steps: of the schedule.
        nudged: seed of `nudge`; None: the weights are as drawn. In one process alone.
    """
    engine = start(config, total_steps)
    initial, first_moments, results = copies(engine, "weight"), [], []
    unsettle(engine)
    if nudged is not None:
        nudge(engine, nudged)
    before = copies(engine, "weight") + copies(engine, "buffer")
    for step in range(steps):
        results.append(engine.train_step(micro_batches(step, engine.mesh.batch.rank)))
        if step == 0:
            first_moments = copies(engine, "exp_avg")
    final = copies(engine, "weight") + copies(engine, "buffer")
    evaluation = engine.evaluate(micro_batches(0, engine.mesh.batch.rank))
    return Recording(results, initial, before, first_moments, final, evaluation)


def reference_run(
    config: RunConfig, start: dict[str, torch.Tensor], batches: Sequence[Batch], total_steps: int
) -> ReferenceRun:
    """The reference's steps from the given weights, one for each global batch."""
    return train(
        ReferenceModel(config.model, counter_dropout(config.run.seed)),
        start,
        batches,
        loss=config.train.loss,
        optimizer=config.optimizer,
        schedule=config.schedule,
        total_steps=total_steps,
    )
