"""Must hold of every layout: the losses, gradient norms, gradients and parameters of the reference (docs: parity)."""

from collections.abc import Callable

import pytest

from tests.layouts.cases import CASES, MATRIX, ONE, Setup
from tests.layouts.conftest import Trace
from tests.layouts.parity import compare, describe, failed, whole_tensors
from tests.layouts.recording import record
from tests.worlds import World


@pytest.mark.parametrize(
    ("case_name", "setup"), [pytest.param(case, setup, id=f"{case}-{setup.name}") for case, setup in MATRIX]
)
def test_layout_trains_like_the_reference(
    case_name: str, setup: Setup, world: Callable[[int], World], trace: Callable[[str], Trace]
):
    expected = trace(case_name)
    if setup == ONE:
        recordings = [expected.one_process]
    else:
        recordings = world(setup.layout.world_size).run(record, case_name, setup)
    config = CASES[case_name].config(setup.layout, setup.zero_stage)
    verdict = compare(recordings, expected.initial, expected.reference, config.model, config.optimizer)
    assert not failed(verdict), f"{case_name} under {setup.name}\n{describe(verdict)}"
    written = whole_tensors(piece for recording in recordings for piece in recording.final)
    assert written.keys() == expected.initial.keys()


@pytest.mark.parametrize("case_name", CASES)
def test_every_step_of_the_matrix_is_clipped(case_name: str, trace: Callable[[str], Trace]):
    clip = CASES[case_name].config(ONE.layout, 1).optimizer.clip_norm
    assert clip is not None
    assert all(step.grad_norm > 1.2 * clip for step in trace(case_name).reference.steps)
