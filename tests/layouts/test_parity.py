"""Every layout trains like the reference: losses, gradient norms, gradients, parameters, and the weights it starts from."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.parity import reference, reference_dropout, reference_experts, reference_training
from tests.layouts.cases import CASES, MATRIX, ONE, Setup
from tests.layouts.conftest import Judge, Trace
from tests.layouts.parity import describe, failed
from tests.layouts.recording import record
from tests.worlds import World


@pytest.mark.parametrize(
    ("case_name", "setup"), [pytest.param(case, setup, id=f"{case}-{setup.name}") for case, setup in MATRIX]
)
def test_layout_trains_like_the_reference(
    case_name: str, setup: Setup, world: Callable[[int], World], trace: Callable[[str], Trace], judge: Judge
):
    if setup == ONE:
        recordings = [trace(case_name).one_process]
    else:
        recordings = world(setup.layout.world_size).run(record, case_name, setup)
    verdict = judge(case_name, setup, recordings)
    assert not failed(verdict), describe(verdict)


@pytest.mark.parametrize("case_name", CASES)
def test_every_step_of_the_matrix_is_clipped(case_name: str, trace: Callable[[str], Trace]):
    clip = CASES[case_name].config(ONE).optimizer.clip_norm
    assert clip is not None
    assert all(step.grad_norm > 10 * clip for step in trace(case_name).one_process.steps)


_REFERENCE = [reference, reference_dropout, reference_experts, reference_training]


@pytest.mark.parametrize("module", _REFERENCE, ids=lambda module: module.__name__)
def test_the_reference_imports_nothing_of_the_system_but_settings(module: object):
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    plain = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    named = {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in plain | named if name.split(".")[0] in ("pretrain", "tests")}
    allowed = {module.__name__ for module in _REFERENCE}
    assert {name for name in ours if not name.endswith(".settings")} <= allowed
