"""The negative control of parity: every seeded fault is found, by the quantity that it breaks."""

from collections.abc import Callable
from functools import cache

import pytest

from tests.layouts.cases import MATRIX, Setup
from tests.layouts.conftest import Judge
from tests.layouts.mutations import MUTATIONS, record_mutated
from tests.layouts.parity import Verdict, describe, failed
from tests.layouts.recording import record
from tests.worlds import World


@pytest.fixture(scope="module")
def control(world: Callable[[int], World], judge: Judge) -> Callable[[str, Setup, int], Verdict]:
    """The verdict on the code as it is, once for each case, layout and length."""

    @cache
    def run(case_name: str, setup: Setup, steps: int) -> Verdict:
        recordings = world(setup.layout.world_size).run(record, case_name, setup, steps)
        return judge(case_name, setup, recordings)

    return run


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation_fails_parity(
    name: str, world: Callable[[int], World], judge: Judge, control: Callable[[str, Setup, int], Verdict]
):
    mutation = MUTATIONS[name]
    case_name, setup = mutation.case, mutation.setup
    assert (case_name, setup) in MATRIX, "a fault must be found where the parity test looks"
    sound = control(case_name, setup, mutation.steps)
    assert not failed(sound), describe(sound)
    verdict = judge(case_name, setup, world(setup.layout.world_size).run(record_mutated, name))
    assert mutation.fails <= failed(verdict), describe(verdict)
    assert not mutation.spares & failed(verdict), describe(verdict)
