"""Evaluation of a checkpoint: the numbers are those of the training run's own validation, and mean what they say."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.nn import functional as F

from pretrain.data.bigram import bigram_baseline
from pretrain.data.micro_batch import IGNORED
from pretrain.data.validation import validation_batches
from pretrain.errors import CheckpointError, ConfigError
from pretrain.evaluate import evaluate, evaluate_losses, sum_losses
from pretrain.files import append_json_line
from pretrain.metrics.evaluation import read_evaluation
from pretrain.pairs import Pair, held_out_pairs, pair_batches, shuffled_sources
from pretrain.trained import load_trained
from tests.trained_runs import copy_of, trained_run


def silent() -> Console:
    return Console(file=io.StringIO(), width=80)


def test_losses_are_those_of_plain_cross_entropy_over_all_held_out_targets() -> None:
    trained = load_trained(trained_run("counting"), pytest.fail)
    rows = validation_batches(trained.config.data, sequences=None, micro_batch_sequences=3, data_rank=0, data_size=1)
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in rows:
            logits = trained.stack(batch.inputs).flatten(0, 1)
            total += F.cross_entropy(
                logits.double(), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
            ).item()
            count += batch.targets
    values = evaluate_losses(trained).values
    assert values["eval/targets"] == count
    assert values["eval/loss"] == pytest.approx(total / count, rel=1e-6)
    assert values["eval/perplexity"] == pytest.approx(math.exp(total / count), rel=1e-6)
    assert values["eval/nats_below_uniform"] == pytest.approx(math.log(trained.tokenizer.vocab_size) - total / count)


def test_bits_per_byte_count_the_bytes_of_the_held_out_text() -> None:
    trained = load_trained(trained_run("counting"), pytest.fail)
    rows = validation_batches(trained.config.data, sequences=None, micro_batch_sequences=3, data_rank=0, data_size=1)
    ids = [int(token) for batch in rows for token in batch.labels.flatten() if token != IGNORED]
    text_bytes = len(trained.tokenizer.decode(ids).encode())
    values = evaluate_losses(trained).values
    nats = values["eval/loss"] * values["eval/targets"]
    assert values["eval/bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-9)


def test_the_evaluation_is_kept_and_read_back(tmp_path: Path) -> None:
    run_dir = copy_of(trained_run("counting"), tmp_path)
    evaluation = evaluate(run_dir, silent())
    assert read_evaluation(run_dir) == evaluation
    content = json.loads((run_dir / "evaluation.json").read_text())
    assert content["step"] == 80
    assert len(content["loss_by_position"]) == 32


def test_the_table_fits_a_terminal_and_names_the_baselines(tmp_path: Path) -> None:
    console = silent()
    evaluate(copy_of(trained_run("translating"), tmp_path), console)
    told = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("validation loss", "below uniform", "bits per byte", "bigram baseline", "sources shuffled", "chrF"):
        assert words in told
    lines = [line for line in told.splitlines() if "kept in" not in line and str(tmp_path) not in line]
    assert max(len(line) for line in lines) <= 80


def test_the_bigram_baseline_is_fitted_on_what_the_model_saw(tmp_path: Path) -> None:
    run_dir = copy_of(trained_run("counting"), tmp_path)
    trained = load_trained(run_dir, pytest.fail)
    config = trained.config
    wanted = bigram_baseline(
        config.data, seed=config.run.seed, global_batch_sequences=config.global_batch_sequences, steps=trained.step
    )
    assert evaluate(run_dir, silent()).values["eval/bigram_loss"] == wanted
    append_json_line(run_dir / "events.jsonl", {"kind": "finish", "summary": {"steps": 80, "eval/bigram_loss": 1.25}})
    assert evaluate(run_dir, silent()).values["eval/bigram_loss"] == 1.25, "what the run noted is not computed again"
    append_json_line(run_dir / "events.jsonl", {"kind": "finish", "summary": {"steps": 81, "eval/bigram_loss": 9.0}})
    assert evaluate(run_dir, silent()).values["eval/bigram_loss"] == 1.25, "another step's baseline is not taken"


def test_shuffled_sources_and_a_copied_source_do_worse(tmp_path: Path) -> None:
    values = evaluate(copy_of(trained_run("translating"), tmp_path), silent()).values
    assert values["eval/shuffled_source_loss"] > values["eval/pair_loss"] + 0.3
    assert values["eval/chrf_greedy"] > values["eval/chrf_copy"] + 10
    assert values["eval/chrf_beam"] > values["eval/chrf_copy"] + 10


def test_a_pair_a_row_has_the_loss_of_packed_rows() -> None:
    trained = load_trained(trained_run("translating"), pytest.fail)
    every = held_out_pairs(trained.config.data, 10_000)
    single = sum_losses(trained, pair_batches(every, trained))
    packed = evaluate_losses(trained)
    assert int(single.targets_by_position.sum()) == packed.values["eval/targets"]
    assert single.loss == pytest.approx(packed.values["eval/loss"], rel=1e-5)


def test_no_pair_keeps_its_source_when_they_are_shuffled() -> None:
    pairs = [Pair((number,), (number,)) for number in range(9)]
    mixed = shuffled_sources(pairs, seed=1)
    assert [pair.target for pair in mixed] == [pair.target for pair in pairs]
    assert all(pair.source != pair.target for pair in mixed)
    assert sorted(pair.source for pair in mixed) == sorted(pair.source for pair in pairs)


def test_dropout_is_off_in_evaluation() -> None:
    trained = load_trained(trained_run("counting"), pytest.fail)
    assert trained.config.model.dropout > 0
    assert evaluate_losses(trained) == evaluate_losses(trained)
    assert not any(parameter.requires_grad for parameter in trained.stack.parameters())


def test_a_run_that_is_none_and_a_run_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the folder of a run"):
        evaluate(tmp_path, silent())
    run_dir = copy_of(trained_run("counting"), tmp_path)
    for marker in run_dir.glob("checkpoints/*/*/COMMITTED"):
        marker.unlink()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        evaluate(run_dir, silent())


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    run_dir = copy_of(trained_run("counting"), tmp_path)
    config = run_dir / "config.yaml"
    config.write_text(config.read_text().replace("num_layers: 2", "num_layers: 3"))
    with pytest.raises(CheckpointError, match=r"model\.num_layers was 2 and is 3"):
        evaluate(run_dir, silent())
