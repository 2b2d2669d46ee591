"""`pretrain data mix` and `trace`, as a person types them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cli import main
from pretrain.config import load_config, write_resolved
from pretrain.data.feed import Feed
from pretrain.data.manifest import MANIFEST_NAME, SPLITS, SplitRecord, read_manifest, write_manifest
from tests.data.folders import counted_pairs, text_documents, write_folder

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Data of two sources."""
    whole = write_folder(tmp_path / "data", text_documents(80, 1), text_documents(6, 2))
    splits = {
        split: SplitRecord.of(
            [replace(shard, source="ab"[at % 2]) for at, shard in enumerate(whole.splits[split].shards)]
        )
        for split in SPLITS
    }
    write_manifest(tmp_path / "data", replace(whole, sources=("a", "b"), splits=splits))
    return tmp_path / "data"


def settings(folder: Path, *more: str) -> list[str]:
    given = [f"data.dir={folder}", "data.sequence_length=16", "data.prepare=null", "train.global_batch_tokens=128"]
    return [word for text in (*given, "train.steps=20", *more) for word in ("--set", text)]


def test_mix_tells_what_each_stage_takes_of_each_source(folder: Path, command: Command) -> None:
    stages = "data.order.stages=[{tokens: 1280, weights: {a: 0.75, b: 0.25}}, {weights: {a: 0.25, b: 0.75}}]"
    code, out, error = command("data", "mix", "quickstart", *settings(folder, stages))
    assert code == 0, error
    assert "20 steps x 8 sequences x 16 tokens = 2,560 tokens" in out and "stage 1: samples 80 to 160" in out
    rows = [line.split() for line in out.splitlines() if line.startswith(("a ", "b "))]
    assert [row[2:4] for row in rows] == [["60", "75.00%"], ["20", "25.00%"], ["20", "25.00%"], ["60", "75.00%"]]


def test_mix_refuses_weights_that_do_not_add_up_and_those_of_no_source(folder: Path, command: Command) -> None:
    code, _, error = command("data", "mix", "quickstart", *settings(folder, "data.order.weights={a: 0.5, b: 0.4}"))
    assert code == 2 and "data.order.weights sum to 0.9" in error
    code, _, error = command("data", "mix", "quickstart", *settings(folder, "data.order.weights={a: 0.5, c: 0.5}"))
    assert code == 2 and "data.order.weights.c" in error and "a, b" in error


def test_mix_counts_the_rows_of_pairs_that_training_reads(tmp_path: Path, command: Command) -> None:
    folder = tmp_path / "pairs"
    write_folder(folder, counted_pairs(60, 1), counted_pairs(6, 2), kind="pairs", vocab_size=60_000)
    given = settings(folder, "data.objective=seq2seq")
    rows = Feed(load_config("quickstart", given[1::2]).data, 7).plan.sources[0].samples
    code, out, error = command("data", "mix", "quickstart", *given)
    assert code == 0, error
    found = next(line.split() for line in out.splitlines() if line.startswith("main "))
    assert found[1] == f"{rows:,}"


def test_trace_names_the_documents_of_a_step_and_refuses_other_data(
    folder: Path, command: Command, tmp_path: Path
) -> None:
    config = load_config("quickstart", [text for text in settings(folder) if text != "--set"])
    config = config.model_copy(update={"run": config.run.model_copy(update={"dir": str(tmp_path / "run")})})
    write_resolved(config, config.run_dir)
    code, out, error = command("data", "trace", tmp_path / "run", "--step", 3)
    assert code == 0, error
    assert "step 3 of quickstart: samples 16 to 23" in out and ".tokens, document" in out
    code, out, _ = command("data", "trace", tmp_path / "run", "--step", 3, "--form", "json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["sample"] for row in rows] == list(range(16, 24)) and {row["source"] for row in rows} == {"a", "b"}
    code, _, error = command("data", "trace", tmp_path / "run", "--step", 21)
    assert code == 2 and "20 steps" in error
    assert read_manifest(folder) and (folder / MANIFEST_NAME).exists()
