"""Worlds and traces that the tests of layouts share: a world a size, one process and one reference a case."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import pytest
from torch import Tensor

from tests.layouts.cases import CASES, ONE, Setup
from tests.layouts.parity import Recording, Verdict, compare, whole_tensors
from tests.layouts.recording import record, reference_run
from tests.layouts.reference import ReferenceRun
from tests.worlds import World

Judge = Callable[[str, Setup, list[Recording]], Verdict]


@dataclass(frozen=True)
class Trace:
    """A case in one process, and the reference from the same weights."""

    one_process: Recording
    initial: dict[str, Tensor]
    reference: ReferenceRun


class Worlds:
    """A world a size, started where it is first asked for."""

    def __init__(self) -> None:
        self._worlds = {size: World(size) for size in (1, 2, 3, 4)}

    def __call__(self, size: int) -> World:
        return self._worlds[size]

    def close(self) -> None:
        """Ends all ranks; a world that is asked for again starts afresh."""
        for each in self._worlds.values():
            each.close()


@pytest.fixture(scope="session")
def world() -> Worlds:
    """Gives the world of a size; its ranks stay for all tests of a file, for DeepSpeed's first engine takes seconds."""
    return Worlds()


@pytest.fixture(scope="module", autouse=True)
def ranks_end_with_their_file(world: Worlds) -> Iterator[None]:
    """Idle ranks are not free: gloo's threads wake a hundred times a second, and took a third of two cores."""
    yield
    world.close()


@pytest.fixture(scope="session")
def trace(world: Callable[[int], World]) -> Callable[[str], Trace]:
    """Gives the trace of a case by its name."""

    @cache
    def run(case_name: str) -> Trace:
        (one_process,) = world(1).run(record, case_name, ONE)
        start = whole_tensors(one_process.start)
        (reference,) = world(1).run(reference_run, case_name, start)
        return Trace(one_process, whole_tensors(one_process.initial), reference)

    return run


@pytest.fixture(scope="session")
def judge(trace: Callable[[str], Trace]) -> Judge:
    """Compares what the ranks of a layout recorded of a case with its reference."""

    def compare_with_reference(case_name: str, setup: Setup, recordings: list[Recording]) -> Verdict:
        expected, config = trace(case_name), CASES[case_name].config(setup)
        return compare(recordings, expected.initial, expected.reference, config.model, config.optimizer)

    return compare_with_reference
