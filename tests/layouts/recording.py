"""What a rank of the parity matrix runs: build the engine, train, and record."""

from dataclasses import replace

from pretrain.engine.build import build_engine
from pretrain.engine.protocol import Engine, Fragment, StateKind
from pretrain.engine.world import start_world
from pretrain.parallel.mesh import ProcessMesh
from tests.layouts.cases import CASES, STEPS, TOTAL_STEPS, Setup, micro_batches
from tests.layouts.parity import Recording


def copies(engine: Engine, kind: StateKind) -> list[Fragment]:
    """The fragments of a kind, with copies of their tensors."""
    return [replace(f, tensor=f.tensor.detach().clone()) for f in engine.fragments() if f.kind == kind]


def start_engine(case_name: str, setup: Setup) -> Engine:
    """The engine of a case in a layout; every rank of the world calls it."""
    device = start_world("cpu")
    mesh = ProcessMesh.create(setup.layout, device)
    return build_engine(CASES[case_name].config(setup.layout, setup.zero_stage), mesh, TOTAL_STEPS)


def record(case_name: str, setup: Setup, steps: int = STEPS) -> Recording:
    """Trains a case in a layout and gives back what parity compares."""
    engine = start_engine(case_name, setup)
    initial, first_moments, results = copies(engine, "weight"), [], []
    for step in range(steps):
        batches = micro_batches(CASES[case_name], step, setup.layout, engine.mesh.data.rank)
        results.append(engine.train_step(batches))
        if step == 0:
            first_moments = copies(engine, "exp_avg")
    return Recording(results, initial, first_moments, copies(engine, "weight"))
