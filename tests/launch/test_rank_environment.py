"""What a rank finds in its environment follows from the config."""

from pathlib import Path

import pytest

from launch.torchrun import rank_environment
from pretrain.config import RunConfig, load_config
from pretrain.resolve import Machine

SMALL = """
model: {d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128, max_sequence_length: 64}
data: {dir: data/small, sequence_length: 32}
train: {steps: 100, global_batch_tokens: 256, micro_batch_sequences: 4, precision: fp32}
"""


def config(folder: Path, *overrides: str) -> RunConfig:
    file = folder / "small.yaml"
    file.write_text(SMALL)
    return load_config(file, overrides)


@pytest.mark.parametrize(
    ("device", "determinism", "expected"),
    [("cuda", "bitwise", ":4096:8"), ("cuda", "fastest", None), ("cpu", "bitwise", None)],
)
def test_cublas_is_told_to_be_deterministic_before_cuda_starts(
    device: str, determinism: str, expected: str | None, tmp_path: Path
) -> None:
    run = config(tmp_path, f"train.device={device}", f"train.determinism={determinism}")
    variables = rank_environment(run, 1, Machine(cores=2), 1, {})
    assert variables.get("CUBLAS_WORKSPACE_CONFIG") == expected


def test_what_the_user_has_set_stays(tmp_path: Path) -> None:
    run = config(tmp_path, "train.device=cuda", "train.determinism=bitwise")
    given = {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert "CUBLAS_WORKSPACE_CONFIG" not in rank_environment(run, 1, Machine(cores=2), 1, given)
