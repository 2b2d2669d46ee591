"""Run folders of tiny models that have really learned something, trained in seconds, for tests of what follows training.

A "counting" decoder has learned a cycle of words; a "translating" encoder-decoder a word-by-word dictionary. Each is made once a
test process, with the project's own data preparation, batches, layers and checkpoint format, and a plain torch loop. Tests that
write into a run take a copy.
"""

import atexit
import itertools
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from torch.nn import functional as F

from data_prep.pipeline import prepare_data
from pretrain.checkpoint.format import ATTEMPTS, RunState
from pretrain.checkpoint.save import save
from pretrain.config import RunConfig, write_resolved
from pretrain.data.batches import training_batches
from pretrain.data.micro_batch import IGNORED
from pretrain.data.token_shards import read_manifest
from pretrain.engine.protocol import Engine, Fragment
from pretrain.files import append_json_line
from pretrain.model.layers import LayerStack, build_layers
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import ModelMesh
from pretrain.parallel.shard import shard_of

Task = Literal["counting", "translating"]

CYCLE = ("red", "green", "blue", "yellow", "white", "black")
DICTIONARY: dict[str, str] = {
    "one": "eins",
    "two": "zwei",
    "three": "drei",
    "four": "vier",
    "five": "fuenf",
    "six": "sechs",
}
STEPS = {"counting": 80, "translating": 350}
BATCH = 16

_MODEL: dict[str, Any] = {"d_model": 48, "num_layers": 2, "num_heads": 4, "d_ff": 96, "max_sequence_length": 64}
_ARCHITECTURE: dict[Task, dict[str, Any]] = {
    "counting": {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "dropout": 0.1},
    "translating": {"architecture": "encoder_decoder", "num_encoder_layers": 2, "positions": "sinusoidal"},
}


@cache
def trained_run(task: Task) -> Path:
    """The folder of a trained run; do not write into it."""
    root = Path(tempfile.mkdtemp(prefix="trained-run-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    config = _config(task, root)
    write_resolved(config, config.run_dir)
    append_json_line(config.run_dir / ATTEMPTS, {"generation": 1})
    stack = LayerStack(build_layers(config.model, ModelMesh(), seed=config.run.seed))
    _train(config, stack)
    save_stack(config, stack, STEPS[task])
    return config.run_dir


def copy_of(run_dir: Path, to: Path) -> Path:
    """A copy of a run that a test may write into; its data folder stays where it is."""
    return Path(shutil.copytree(run_dir, to / "run"))


def save_stack(config: RunConfig, stack: LayerStack, step: int, **changes: Any) -> None:
    """Commits a checkpoint of a model."""
    manifest = read_manifest(config.data.folder)
    state = RunState(
        model=config.model.model_dump(mode="json"),
        layout={"pp": 1, "dp": 1, "tp": 1, "zero_stage": 1},
        precision="fp32",
        next_sample=step * BATCH,
        targets=step * config.train.global_batch_tokens,
        plan_hash="00" * 16,
        tokenizer_hash=manifest.tokenizer_hash,
    )
    save(cast("Engine", _StackEngine(stack, step)), config.run_dir, 1, state.model_copy(update=changes))


class _StackEngine:
    """As much of an engine as saving asks for."""

    skipped_steps = 0

    def __init__(self, stack: LayerStack, step: int) -> None:
        self.stack, self.step = stack, step
        self.mesh = ProcessMesh.single()

    def fragments(self) -> Iterator[Fragment]:
        for parameter in self.stack.parameters():
            shard, flat = shard_of(parameter), parameter.detach().flatten()
            yield Fragment("weight", shard, tuple(parameter.shape), 0, flat, True)
            yield Fragment("exp_avg", shard, tuple(parameter.shape), 0, torch.zeros_like(flat), True)
            yield Fragment("exp_avg_sq", shard, tuple(parameter.shape), 0, torch.zeros_like(flat), True)


def _config(task: Task, root: Path) -> RunConfig:
    length = 32 if task == "counting" else 16
    corpus = _write_corpus(task, root)
    config = {
        "name": task,
        "run": {"dir": str(root / "runs" / task), "seed": 7},
        "model": {**_MODEL, **_ARCHITECTURE[task]},
        "layout": {"pp": 1, "dp": 1},
        "data": {
            "dir": str(root / "data"),
            "sequence_length": length,
            "objective": "causal" if task == "counting" else "seq2seq",
            "prepare": {"corpus": corpus, "tokenizer": {"vocab_size": 300}, "validation_fraction": 0.1},
        },
        "train": {
            "steps": STEPS[task],
            "global_batch_tokens": BATCH * length,
            "micro_batch_sequences": BATCH,
            "precision": "fp32",
            "device": "cpu",
        },
        "samples": {"prompts": ["red green" if task == "counting" else "two one"], "max_tokens": 12},
        "evaluation": {"beam_size": 0 if task == "counting" else 3, "translations": 24},
    }
    made = RunConfig.model_validate(config)
    prepare_data(made.data, "local", 1, Console(quiet=True))
    vocab_size = read_manifest(made.data.folder).vocab_size
    return made.model_copy(update={"model": made.model.model_copy(update={"vocab_size": vocab_size})})


def _write_corpus(task: Task, root: Path) -> dict[str, Any]:
    draw = random.Random(3)
    if task == "counting":
        rows = [
            {"text": _cycle(draw.randrange(6), 10 + draw.randrange(30)) + f" end {number}"} for number in range(200)
        ]
        fields = {}
    else:
        sources = [words for length in (1, 2, 3) for words in itertools.product(DICTIONARY, repeat=length)]
        rows = [{"s": " ".join(words), "t": " ".join(DICTIONARY[word] for word in words)} for words in sources]
        fields = {"source_field": "s", "target_field": "t"}
    path = root / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "paths": [str(path)], **fields}


def _cycle(start: int, count: int) -> str:
    return " ".join(CYCLE[(start + index) % len(CYCLE)] for index in range(count))


def _train(config: RunConfig, stack: LayerStack) -> None:
    """Plain torch: what is tested comes afterwards."""
    optimizer = torch.optim.AdamW(stack.parameters(), lr=4e-3, betas=(0.9, 0.98))
    with training_batches(
        config.data,
        seed=config.run.seed,
        global_batch_sequences=BATCH,
        micro_batch_sequences=BATCH,
        data_rank=0,
        data_size=1,
        first_step=0,
    ) as batches:
        for step, (batch,) in zip(range(config.train.steps), batches, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = 4e-3 * min(1.0, (step + 1) / 20) * (1 - step / config.train.steps)
            loss = F.cross_entropy(stack(batch.inputs).flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
