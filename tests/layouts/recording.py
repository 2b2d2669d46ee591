"""What the ranks run: build the engine, train and record; and, in a rank of its own, the reference."""

import zlib
from dataclasses import replace

import torch

from pretrain.engine.build import build_engine
from pretrain.engine.protocol import Engine, Fragment, StateKind
from pretrain.engine.world import start_world
from pretrain.parallel.mesh import ProcessMesh
from tests.layouts.cases import CASES, ONE, STEPS, TOTAL_STEPS, Setup, global_batch, micro_batches
from tests.layouts.parity import Recording
from tests.layouts.reference import ReferenceModel, ReferenceRun, train
from tests.layouts.reference_dropout import counter_dropout


def copies(engine: Engine, kind: StateKind) -> list[Fragment]:
    """The fragments of a kind, with copies of their tensors."""
    return [replace(f, tensor=f.tensor.detach().clone()) for f in engine.fragments() if f.kind == kind]


def unsettle(engine: Engine) -> None:
    """Moves every vector (norm gains, biases) off its initial 1 or 0, where many a fault with it would not show.

    By global name, so the same in every layout. It also puts rounding noise in proportion: a bias of a few learning rates is
    noise of Adam in good part.
    """
    for fragment in engine.fragments():
        if fragment.kind == "weight" and len(fragment.shard.shape) == 1:
            generator = torch.Generator().manual_seed(zlib.crc32(fragment.shard.name.encode()))
            whole = torch.empty(fragment.shard.shape).uniform_(-0.3, 0.3, generator=generator)
            local = torch.zeros(fragment.local_shape)
            fragment.shard.real(local).copy_(fragment.shard.of(whole))
            fragment.tensor.add_(local[fragment.start : fragment.start + len(fragment.tensor)])
    engine.finish_load(0)


def start_engine(case_name: str, setup: Setup) -> Engine:
    """The engine of a case in a layout; every rank of the world calls it."""
    device = start_world("cpu")
    mesh = ProcessMesh.create(setup.layout, device)
    return build_engine(CASES[case_name].config(setup), mesh, TOTAL_STEPS)


def record(case_name: str, setup: Setup, steps: int = STEPS) -> Recording:
    """Trains a case in a layout and gives back what parity compares."""
    engine = start_engine(case_name, setup)
    initial, first_moments, results = copies(engine, "weight"), [], []
    unsettle(engine)
    start = copies(engine, "weight")
    for step in range(steps):
        batches = micro_batches(CASES[case_name], step, setup.layout, engine.mesh.data.rank)
        results.append(engine.train_step(batches))
        if step == 0:
            first_moments = copies(engine, "exp_avg")
    return Recording(results, initial, start, first_moments, copies(engine, "weight"))


def reference_run(case_name: str, start: dict[str, torch.Tensor]) -> ReferenceRun:
    """The reference's five steps of a case."""
    case = CASES[case_name]
    config = case.config(ONE)
    return train(
        ReferenceModel(config.model, counter_dropout(config.run.seed)),
        start,
        [global_batch(case, step) for step in range(STEPS)],
        loss=config.train.loss,
        optimizer=config.optimizer,
        schedule=config.schedule,
        total_steps=TOTAL_STEPS,
    )
