"""The shipped data configs are whole and say what their files are called."""

from pathlib import Path

import pytest
import yaml

from pretrain.data.settings import DataSettings

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_data_config_is_valid_and_can_be_prepared(path: Path) -> None:
    content = yaml.safe_load(path.read_text())
    assert content.keys() == {"data"}
    data = DataSettings.model_validate(content["data"])
    assert data.prepare is not None and data.dir == f"data/{path.stem}"
    assert (data.objective == "seq2seq") == (data.prepare.kind == "pairs")


def test_there_are_configs_of_both_kinds() -> None:
    assert {path.stem for path in CONFIGS} >= {"standard_library", "translation_en_de"}
