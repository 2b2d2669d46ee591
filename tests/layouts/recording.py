"""What the ranks run for a case of the matrix: `pretrain.parity.recording` on its config and its batches."""

from functools import partial

import torch

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.protocol import Engine
from pretrain.parity import recording
from pretrain.parity.recording import copies, unsettle
from pretrain.parity.reference_training import ReferenceRun
from pretrain.parity.verdict import Recording
from tests.layouts.cases import CASES, ONE, STEPS, TOTAL_STEPS, Setup, global_batch, micro_batches

__all__ = ["copies", "record", "reference_run", "start_engine", "unsettle"]


def start_engine(case_name: str, setup: Setup) -> Engine:
    """The engine of a case in a layout; every rank of the world calls it."""
    return recording.start(CASES[case_name].config(setup), TOTAL_STEPS)


def _micro_batches(case_name: str, setup: Setup, step: int, data_rank: int) -> list[MicroBatch]:
    return micro_batches(CASES[case_name], step, setup.layout, data_rank)


def record(case_name: str, setup: Setup, steps: int = STEPS) -> Recording:
    """Trains a case in a layout and gives back what parity compares."""
    batches = partial(_micro_batches, case_name, setup)
    return recording.record(CASES[case_name].config(setup), batches, steps, TOTAL_STEPS)


def reference_run(case_name: str, start: dict[str, torch.Tensor]) -> ReferenceRun:
    """The reference's five steps of a case."""
    case = CASES[case_name]
    batches = [global_batch(case, step) for step in range(STEPS)]
    return recording.reference_run(case.config(ONE), start, batches, TOTAL_STEPS)
