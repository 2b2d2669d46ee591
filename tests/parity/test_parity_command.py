"""`pretrain parity` as a person starts it: the table, the exit codes, ranks that fail."""

import os
import sys
from collections.abc import Callable

import pytest

from launch.cli import main
from pretrain.parity import check
from pretrain.parity.layouts import read_cases
from pretrain.parity.verdict import BOUNDS

LAYOUTS = ["--layouts", "dp=2", "pp=2"]


def test_layouts_that_train_the_same_model_end_with_0(capsys: pytest.CaptureFixture[str]):
    assert main(["parity", "parity.yaml", "--steps", "2", *LAYOUTS]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines() if "same model" in line}
    assert {"one", "dp=2", "pp=2"} <= set(rows)
    assert "tolerance" in out and "1e-05" in out and "2 steps" in out


def test_a_bad_verdict_ends_with_1_and_names_quantity_and_tensor(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(check, "BOUNDS", BOUNDS | {"gradients": 1e-12})
    assert main(["parity", "parity.yaml", "--steps", "1", "--layouts", "dp=2"]) == 1
    told = capsys.readouterr()
    assert "differs" in told.out and "gradients" in told.out and "layers." in told.out
    assert "2 of 2 layouts train another model" in told.err


def test_refused_layouts_end_with_2_before_torch_is_asked(capsys: pytest.CaptureFixture[str]):
    assert main(["parity", "parity.yaml", "--layouts", "tp=2", "tp=3"]) == 2
    told = capsys.readouterr()
    assert 'layout "tp=3": layout.tp=3 must divide model.num_heads=4' in told.err and told.out == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "either a CONFIG with --layouts, or --random N"),
        (["parity.yaml"], "--layouts is missing"),
        (["parity.yaml", "--random", "2"], "either a CONFIG with --layouts, or --random N"),
        (["--random", "2", "--layouts", "tp=2"], "leave --layouts and --set out"),
        (["parity.yaml", "--layouts", "tp"], "is not KEY=VALUE"),
        (["parity.yaml", "--layouts", "tp=2,,pp=2"], "'' is not KEY=VALUE"),
        (["parity.yaml", "--layouts", "tp=2,tp=4"], "tp is said twice"),
        (["parity.yaml", "--layouts", "dp=2,model.num_layers=2"], "say it for all: --set model.num_layers=2"),
        (["parity.yaml", "--layouts", "tp=2,train.device=cuda"], "is said by --device cuda"),
        (["parity.yaml", "--layouts", "tpp=2"], "did you mean layout.tp"),
        (["nowhere.yaml", "--layouts", "tp=2"], "there is no such config file"),
    ],
)
def test_mistakes_of_use_are_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]):
    assert main(["parity", *arguments]) == 2
    assert told in capsys.readouterr().err


def _die(*_: object) -> None:
    print("last words", file=sys.stderr, flush=True)
    os._exit(7)


def _raise(*_: object) -> None:
    raise KeyError("the cause")


@pytest.mark.parametrize(("fault", "story"), [(_die, "died with exit code 7"), (_raise, "KeyError: 'the cause'")])
def test_ranks_that_fail_tell_their_story_and_the_other_layouts_are_run(
    fault: Callable[..., None], story: str, monkeypatch: pytest.MonkeyPatch
):
    record = check.record
    cases, _ = read_cases("parity.yaml", [], ["dp=2", "pp=2"], device="cpu", steps=1)
    with check.Prover(steps=1, timeout_s=60) as prover:
        prover.prove(cases[0])
        monkeypatch.setattr(check, "record", fault)
        broken = prover.prove(cases[1])
        assert story in broken.story and not broken.passed and broken.word == "ranks failed"
        monkeypatch.setattr(check, "record", record)
        assert prover.prove(cases[0]).passed
