"""Runs of a tiny model on ranks that are there already (tests.worlds), for tests that stop, damage and resume them."""

import json
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pretrain.config import RunConfig, write_resolved
from pretrain.errors import PretrainError
from pretrain.files import append_json_line, read_json_lines
from pretrain.guard.preemption import StopReason, StopSignals
from pretrain.train import train
from tests.data.folders import text_documents, write_folder

STEPS = 6


def make_data(folder: Path, seed: int = 1) -> Path:
    """A data folder of random documents with a vocabulary of 100."""
    manifest = write_folder(
        folder, text_documents(60, seed=seed), text_documents(12, seed=seed + 1), shard_documents=30
    )
    # Two bytes a text token, none for the three special ones.
    (folder / "token_bytes.bin").write_bytes(b"\0\0" * 3 + b"\2\0" * (manifest.vocab_size - 3))
    return folder


def make_run(run_dir: Path, data_dir: Path, **changes: dict[str, Any]) -> Path:
    """The folder of a run that has not been launched; `changes` are laid over sections of its config."""
    tree: dict[str, Any] = {
        "name": run_dir.name,
        "run": {"dir": str(run_dir)},
        "model": {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "vocab_size": 100, "dropout": 0.1}
        | {"max_sequence_length": 16},
        "layout": {"pp": 2, "dp": 1, "tp": 1, "sequence_parallel": "disabled"},
        "data": {"dir": str(data_dir), "sequence_length": 16},
        "optimizer": {"peak_lr": 1e-2, "clip_norm": 0.5},
        "schedule": {"warmup_steps": 2},
        "train": {"steps": STEPS, "global_batch_tokens": 64, "micro_batch_sequences": 1}
        | {"precision": "fp32", "device": "cpu"},
        "checkpoint": {"interval_steps": 2},
        "evaluation": {"interval_steps": 3, "sequences": 4},
        "logging": {"wandb": {"mode": "disabled"}},
    }
    for section, values in changes.items():
        tree[section] = tree[section] | values
    write_resolved(RunConfig.model_validate(tree), run_dir)
    return run_dir


def register(run_dir: Path) -> int:
    """Notes a launch, as the launcher does; its generation."""
    generation = 1 + len(read_json_lines(run_dir / "attempts.jsonl"))
    append_json_line(run_dir / "attempts.jsonl", {"generation": generation, "changes": []})
    return generation


class StopAfter(StopSignals):
    """A signal that reaches one rank alone during its n-th step."""

    def __init__(self, rank: int, steps: int) -> None:
        self._left = steps if dist.get_rank() == rank else -1

    @property
    def reason(self) -> StopReason:  # type: ignore[override]
        """The loop asks once a step."""
        self._left -= 1
        return StopReason.PREEMPTED if self._left == 0 else StopReason.NONE


def train_in_rank(run_dir: Path, generation: int, stop_after: int = -1) -> str:
    """Runs one rank of a launch; how it ended."""
    try:
        train(run_dir, generation, StopAfter(dist.get_world_size() - 1, stop_after))
    except PretrainError as error:
        return f"{type(error).__name__}: {error}"
    return "finished"


def losses(run_dir: Path) -> dict[int, dict[str, Any]]:
    """What each step and evaluation computed; that every replayed step gave the very same is checked on the way."""
    found: dict[int, dict[str, Any]] = {}
    for row in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines()):
        values = {name: value for name, value in row.items() if name.startswith(("train/", "eval/"))}
        assert found.setdefault(row["step"], values) == values, f"step {row['step']} was repeated with another result"
    return found


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of events.jsonl of a kind."""
    return [row for row in read_json_lines(run_dir / "events.jsonl") if row["kind"] == kind]
