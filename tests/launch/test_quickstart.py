"""The quick start from a corpus to a report, small: text files, one block, two stages, a few steps."""

import json
import re
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.files import read_json_lines

TINY = """
model: {d_model: 32, num_layers: 1, num_heads: 2, d_ff: 32, norm: rmsnorm, positions: rotary, activation: swiglu, biases: []}
layout: {pp: auto}
data:
  dir: data/tiny
  sequence_length: 32
  prepare:
    corpus: {source: text, paths: [corpus/*.txt]}
    tokenizer: {vocab_size: 300}
    validation_fraction: 0.2
optimizer: {peak_lr: 1.0e-2}
train: {steps: 4, global_batch_tokens: 256, micro_batch_sequences: 4, device: cpu, precision: fp32}
checkpoint: {interval_steps: 2}
logging: {wandb: {mode: disabled}}
evaluation: {sequences: 8}
samples: {prompts: ["def "], max_tokens: 4}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        text = "".join(f"def function_{number}_{line}(x):\n    return x + {line}\n\n" for line in range(20))
        (tmp_path / f"corpus/{number}.txt").write_text(text)
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_mistake_in_the_layout_is_told_before_data_are_prepared(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quickstart", "tiny.yaml", "--backend", "local", "--set", "layout.tp=3"]) == 2
    assert "layout.tp=3 must divide model.num_heads=2" in capsys.readouterr().err
    assert not (place / "data").exists() and not (place / "runs").exists()


def test_a_tokenizer_is_trained_without_shards(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        "tokenizer",
        "train",
        "tiny.yaml",
        "--out",
        "mine/tokenizer.json",
        "--backend",
        "local",
        "--workers",
        "1",
    ]
    assert main(command) == 0
    assert "mine/tokenizer.json" in capsys.readouterr().out
    assert len(json.loads((place / "mine/tokenizer.json").read_text())["model"]["vocab"]) == 300
    assert main(["prepare", "tiny.yaml", "--backend", "local", "--workers", "1"]) == 0
    assert (place / "data/tiny/tokenizer.json").read_bytes() == (place / "mine/tokenizer.json").read_bytes()


def test_the_quick_start_goes_from_a_corpus_to_a_report_and_a_second_one_reuses_it(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["quickstart", "tiny.yaml", "--backend", "local", "--workers", "1", "--nproc", "2"]
    assert main(command) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    run_dir = place / "runs/tiny"
    for heading in ("[1/4] data: data/tiny", "[2/4] training: tiny", "[3/4] evaluation", "[4/4] report"):
        assert heading in out
    assert "pp=2 dp=1 tp=1" in out and "look at   runs/tiny/report.html" in out
    assert "<html" in (run_dir / "report.html").read_text()[:300]
    assert json.loads((run_dir / "evaluation.json").read_text())["step"] == 4
    assert len(read_json_lines(run_dir / "samples.jsonl")) == 1
    longer = re.search(r"python -m launch (train tiny.yaml .*--allow-change train.steps)", out)
    assert longer is not None and "--set train.steps=8" in longer[1]

    assert main(command) == 0, capfd.readouterr().err
    again = capfd.readouterr().out
    assert "data/tiny: reused" in again and "already at step 4 of 4; nothing is left to train" in again
    assert again.count("reused") == 3
    assert len(read_json_lines(run_dir / "attempts.jsonl")) == 1

    assert main(["checkpoint", "verify", "runs/tiny"]) == 0
    assert capfd.readouterr().out.count("whole") == 2

    assert main(longer[1].split()) == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    assert "from step 4" in out or "step 4" in out
    assert [row["generation"] for row in read_json_lines(run_dir / "attempts.jsonl")] == [1, 2]
    steps = [row["step"] for row in read_json_lines(run_dir / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]
