"""A config with a data folder that the launcher accepts; no rank of these tests reads it."""

from pathlib import Path

import pytest

from pretrain.data.token_shards import MANIFEST_NAME, Manifest, ShardRecord, SpecialTokens, SplitRecord

SMALL = """
name: small
run: {{dir: {folder}/run}}
model: {{d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128}}
data: {{dir: {folder}/data, sequence_length: 32}}
train: {{steps: 100, global_batch_tokens: 256, micro_batch_sequences: 1, device: cpu, precision: fp32}}
"""


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "data/train").mkdir(parents=True)
    (tmp_path / "data/train/0.tokens").write_bytes(bytes(20_000))
    split = SplitRecord((ShardRecord("train/0.tokens", 10_000, 100, 40_000, 20_000, "0" * 32),))
    manifest = Manifest("text", 300, "0" * 32, SpecialTokens(0, 1, 2), {"train": split, "validation": split})
    (tmp_path / "data" / MANIFEST_NAME).write_text(manifest.to_json())
    file = tmp_path / "small.yaml"
    file.write_text(SMALL.format(folder=tmp_path))
    return file


@pytest.fixture(autouse=True)
def _ranks_find_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)
