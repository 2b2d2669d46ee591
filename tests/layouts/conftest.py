"""Worlds and traces that the tests of layouts share: a world a size, one process and one reference a case."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from torch import Tensor

from tests.layouts.cases import CASES, ONE, STEPS, TOTAL_STEPS, global_batch
from tests.layouts.parity import Recording, whole_tensors
from tests.layouts.recording import record
from tests.layouts.reference import ReferenceModel, ReferenceRun, train
from tests.layouts.reference_dropout import counter_dropout
from tests.worlds import World


@dataclass(frozen=True)
class Trace:
    """A case in one process, and the reference from the same weights."""

    one_process: Recording
    initial: dict[str, Tensor]
    reference: ReferenceRun


@pytest.fixture(scope="session")
def world() -> Iterator[Callable[[int], World]]:
    """Gives the world of a size; its ranks stay until the tests end, for DeepSpeed's first engine takes seconds."""
    worlds = {size: World(size) for size in (1, 2, 4)}
    yield worlds.__getitem__
    for each in worlds.values():
        each.close()


@pytest.fixture(scope="session")
def trace(world: Callable[[int], World]) -> Callable[[str], Trace]:
    """Gives the trace of a case by its name."""

    @cache
    def run(case_name: str) -> Trace:
        (one_process,) = world(1).run(record, case_name, ONE)
        initial = whole_tensors(one_process.initial)
        return Trace(one_process, initial, reference_run(case_name, initial))

    return run


def reference_run(case_name: str, initial: dict[str, Tensor]) -> ReferenceRun:
    """The reference's five steps of a case."""
    case = CASES[case_name]
    config = case.config(ONE.layout, ONE.zero_stage)
    return train(
        ReferenceModel(config.model, counter_dropout(config.run.seed)),
        initial,
        [global_batch(case, step) for step in range(STEPS)],
        loss=config.train.loss,
        optimizer=config.optimizer,
        schedule=config.schedule,
        total_steps=TOTAL_STEPS,
    )
