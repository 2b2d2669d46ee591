"""Every rule's sentence reaches the person who breaks it: exit code 2, before a rank starts, by every command that trains."""

from pathlib import Path

import pytest

from launch.cli import main
from pretrain.config import load_config
from pretrain.resolve import Machine, World, resolve
from pretrain.rules import CONFIG_RULES
from tests.test_rules import CONFIG_CASES, SMALL

RULES = {rule.name: rule for rule in CONFIG_RULES}
OF_LAYOUTS = [name for name, (breaking, _, _) in CONFIG_CASES.items() if any("layout." in text for text in breaking)]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return "small.yaml"


def sentence(name: str, config: str, overrides: list[str]) -> str:
    """What the rule says to the config."""
    resolved = resolve(load_config(config, overrides), Machine(cores=2), World(), vocab_size=300)
    return RULES[name].message(resolved)


@pytest.mark.parametrize("name", CONFIG_CASES)
def test_train_refuses_with_the_rules_sentence(name: str, config: str, capsys: pytest.CaptureFixture[str]):
    breaking, _, _ = CONFIG_CASES[name]
    assert main(["train", config, *(word for text in breaking for word in ("--set", text))]) == 2
    assert sentence(name, config, breaking) in capsys.readouterr().err
    assert not Path("runs").exists(), "nothing is written for a refused run"


@pytest.mark.parametrize("name", OF_LAYOUTS)
def test_parity_refuses_a_layout_with_the_rules_sentence(name: str, config: str, capsys: pytest.CaptureFixture[str]):
    breaking, _, _ = CONFIG_CASES[name]
    layout = [text.removeprefix("layout.") for text in breaking if text.startswith(("layout.", "train.precision"))]
    rest = [text for text in breaking if not text.startswith(("layout.", "train.precision"))]
    command = ["parity", config, *(word for text in rest for word in ("--set", text)), "--layouts", ",".join(layout)]
    assert main(command) == 2
    assert sentence(name, config, breaking).split(";")[0] in capsys.readouterr().err


def test_the_rules_of_layouts_are_among_them():
    assert {"tp_divides_heads", "stages_have_layers", "pipeline_needs_zero_1"} <= set(OF_LAYOUTS)
