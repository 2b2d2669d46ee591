"""The models, batches and layouts of the parity matrix: tiny, but with everything that makes layouts disagree.

Vocabulary 61 divides by no tp; llama's key-value heads are grouped, PaLM's is one (replicated under tp); windows hold several
documents and padding; targets are so unequally spread over micro-batches that any mean of means is far from the mean; one
micro-batch is padding alone. Initial weights are larger than in training (std 0.2): logits then tell tokens apart, attention
is far from uniform, and a fault anywhere reaches the loss. Every step is clipped, to a norm so small that Adam's epsilon of 1e-6
rises above the rounding noise of fp32, which Adam would otherwise blow up to whole learning rates.
"""

import random
from dataclasses import asdict, dataclass
from typing import Any

import torch
import yaml

from pretrain.config import RunConfig
from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.parallel.layout import ParallelLayout

STEPS = 5
TOTAL_STEPS = 8
"""Length of the schedule: the runs end in the middle of its decay."""
SEQUENCES, MICRO_SEQUENCES = 8, 2
LENGTH, SOURCE_LENGTH = 16, 12
VOCABULARY = 61
_TARGET_SHARES = (1.0, 0.35, 0.8, 0.1)
"""Share of labels kept in each micro-batch of a step."""

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    name: str
    model: dict[str, Any]
    loss: dict[str, Any]
    schedule: dict[str, Any]

    @property
    def is_encoder_decoder(self) -> bool:
        return self.model.get("architecture") == "encoder_decoder"

    def config(self, setup: "Setup") -> RunConfig:
        """The run config of this case in a layout."""
        layout = setup.layout
        split = "enabled" if layout.tp > 1 and layout.pp > 1 else "disabled"
        data: dict[str, Any] = {"dir": "unused", "sequence_length": LENGTH}
        if self.is_encoder_decoder:
            data |= {"objective": "seq2seq", "source_length": SOURCE_LENGTH}
        tree: dict[str, Any] = {
            "name": self.name,
            "model": _SIZE | self.model,
            "layout": asdict(layout) | {"zero_stage": setup.zero_stage, "sequence_parallel": split},
            "data": data,
            "optimizer": {"peak_lr": 1e-3, "epsilon": 1e-6, "weight_decay": 0.1, "clip_norm": 0.03},
            "schedule": self.schedule,
            "train": {
                "steps": TOTAL_STEPS,
                "global_batch_tokens": SEQUENCES * LENGTH,
                "micro_batch_sequences": MICRO_SEQUENCES,
                "precision": "fp32",
                "device": "cpu",
                "loss": self.loss,
            },
        }
        for text in setup.more:
            path, value = text.split("=")
            section, name = path.split(".")
            tree[section] |= {name: yaml.safe_load(value)}
        return RunConfig.model_validate(tree)


_SIZE = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "num_layers": 4,
    "num_heads": 4,
    "d_ff": 48,
    "max_sequence_length": 20,
    "initialization": {"std": 0.2},
}
_COSINE = {"name": "cosine", "warmup_steps": 2}
_LLAMA = {
    "num_kv_heads": 2,
    "norm": "rmsnorm",
    "positions": "rotary",
    "activation": "swiglu",
    "biases": [],
}
_GPT3 = {"norm": "layernorm", "positions": "learned", "activation": "gelu_tanh"}
_PALM = {
    "num_kv_heads": 1,
    "block": "parallel",
    "positions": "rotary",
    "activation": "swiglu",
    "biases": [],
    "logit_scale": "rsqrt_d_model",
    "initialization": {"std": 0.2, "embedding_std": 1.0},
}
_TRANSFORMER = {
    "architecture": "encoder_decoder",
    "num_layers": 2,
    "num_encoder_layers": 2,
    "norm_position": "post",
    "positions": "sinusoidal",
    "activation": "relu",
    "embedding_scale": "sqrt_d_model",
}
_Z_LOSS = {"z_loss": 0.01}
_SMOOTHING = {"label_smoothing": 0.1}

CASES = {
    case.name: case
    for case in (
        Case("llama-untied", {**_LLAMA, "embeddings": "untied"}, _Z_LOSS | _SMOOTHING, _COSINE),
        Case("llama-tied", {**_LLAMA, "embeddings": "tied"}, _Z_LOSS, _COSINE),
        Case("gpt3-tied", {**_GPT3, "embeddings": "tied"}, _SMOOTHING, {"name": "linear", "warmup_steps": 1}),
        Case("gpt3-untied", {**_GPT3, "embeddings": "untied"}, {}, _COSINE),
        Case("palm-tied", {**_PALM, "embeddings": "tied"}, _Z_LOSS, _COSINE),
        Case("palm-untied", {**_PALM, "embeddings": "untied"}, _Z_LOSS | _SMOOTHING, {"name": "constant"}),
        Case(
            "transformer-tied",
            {**_TRANSFORMER, "embeddings": "tied", "dropout": 0.1, "attention_dropout": 0.1},
            _SMOOTHING,
            {"name": "cosine", "warmup_steps": 3},
        ),
        Case(
            "transformer-untied",
            {**_TRANSFORMER, "embeddings": "untied", "norm_position": "pre", "positions": "learned"},
            _Z_LOSS,
            _COSINE,
        ),
    )
}


@dataclass(frozen=True)
class Setup:
    """A layout with its ZeRO stage."""

    layout: ParallelLayout
    zero_stage: int = 1
    more: tuple[str, ...] = ()
    """Further settings, such as `train.recompute=full`."""

    @property
    def name(self) -> str:
        split = "_".join(f"{axis}{size}" for axis, size in asdict(self.layout).items() if size > 1) or "one"
        zero = () if self.zero_stage == 1 else (f"zero{self.zero_stage}",)
        return "_".join((split, *zero, *(text.split(".")[1] for text in self.more)))


ONE = Setup(ParallelLayout())
_GRIDS = (ONE, *(Setup(ParallelLayout(**axes)) for axes in ({"tp": 2}, {"pp": 2}, {"dp": 2}, {"tp": 2, "pp": 2})))
MATRIX = [(case, setup) for case in CASES for setup in _GRIDS] + [
    ("llama-untied", Setup(ParallelLayout(pp=2, dp=2))),
    ("gpt3-tied", Setup(ParallelLayout(pp=2, dp=2))),
    ("transformer-tied", Setup(ParallelLayout(pp=2, dp=2))),
    ("palm-tied", Setup(ParallelLayout(tp=2, dp=2))),
    ("transformer-tied", Setup(ParallelLayout(tp=2, dp=2))),
    ("gpt3-untied", Setup(ParallelLayout(tp=4))),
    ("transformer-untied", Setup(ParallelLayout(pp=4))),
    ("gpt3-tied", Setup(ParallelLayout(dp=2), zero_stage=0)),
    ("palm-tied", Setup(ParallelLayout(tp=2), zero_stage=0)),
    ("gpt3-tied", Setup(ParallelLayout(dp=2), zero_stage=2)),
    ("llama-untied", Setup(ParallelLayout(tp=2, dp=2), zero_stage=2)),
    ("gpt3-tied", Setup(ParallelLayout(dp=2), zero_stage=3)),
    ("transformer-tied", Setup(ParallelLayout(tp=2, dp=2), zero_stage=3)),
]
"""(case, setup): what the parity test runs."""


def global_batch(case: Case, step: int) -> Batch:
    """All sequences of a step (counted from 0): the model's inputs, and `labels`."""
    rng = random.Random(f"{case.is_encoder_decoder} {step}")
    rows = [_pair_row(rng, row) if case.is_encoder_decoder else _text_row(rng, row) for row in range(SEQUENCES)]
    batch = {name: torch.tensor([row[name] for row in rows]) for name in rows[0]}
    batch["sample"] = torch.arange(step * SEQUENCES, (step + 1) * SEQUENCES)
    for micro, share in enumerate(_TARGET_SHARES):
        part = slice(micro * MICRO_SEQUENCES, (micro + 1) * MICRO_SEQUENCES)
        ignored = torch.tensor([[rng.random() >= share for _ in range(LENGTH)] for _ in range(MICRO_SEQUENCES)])
        batch["labels"][part].masked_fill_(ignored, IGNORED)
    if step == 3:  # what a data set's end looks like: rows that only fill up
        last = slice(SEQUENCES - MICRO_SEQUENCES, None)
        batch["labels"][last], batch["documents"][last] = IGNORED, -1
        if case.is_encoder_decoder:
            batch["source_documents"][last] = -1
    return batch


def micro_batches(case: Case, step: int, layout: ParallelLayout, data_rank: int) -> list[MicroBatch]:
    """A data rank's part of the step: a contiguous slice of its micro-batches."""
    batch = global_batch(case, step)
    labels = batch.pop("labels")
    share = SEQUENCES // layout.dp
    starts = range(data_rank * share, (data_rank + 1) * share, MICRO_SEQUENCES)
    parts = [slice(start, start + MICRO_SEQUENCES) for start in starts]
    return [MicroBatch({name: field[part] for name, field in batch.items()}, labels[part]) for part in parts]


def _text_row(rng: random.Random, row: int) -> dict[str, list[int]]:
    """A window of one to four documents; every third ends in padding."""
    length = LENGTH - rng.randint(2, 5) if row % 3 == 2 else LENGTH
    ends = sorted({*rng.sample(range(1, length), row % 4), length})
    tokens = [rng.randrange(VOCABULARY) for _ in range(LENGTH)]
    documents, positions, labels = [-1] * LENGTH, [0] * LENGTH, [IGNORED] * LENGTH
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        for i in range(start, end):
            documents[i], positions[i] = number, i - start
            labels[i] = tokens[i + 1] if i + 1 < end else IGNORED
    if length == LENGTH:
        labels[-1] = rng.randrange(VOCABULARY)  # the last document goes on in the next window
    return {"tokens": tokens, "documents": documents, "positions": positions, "labels": labels}


def _pair_row(rng: random.Random, row: int) -> dict[str, list[int]]:
    """One or two pairs, sources and targets with padding behind them."""
    fields = ("source_tokens", "source_documents", "tokens", "documents", "positions", "labels")
    result: dict[str, list[int]] = {name: [] for name in fields}
    pairs = 1 + row % 2
    for number in range(pairs):
        source = rng.randint(2, SOURCE_LENGTH // pairs)
        target = rng.randint(2, LENGTH // pairs)
        result["source_documents"] += [number] * source
        result["documents"] += [number] * target
        result["positions"] += range(target)
        result["labels"] += [rng.randrange(VOCABULARY) for _ in range(target)]
    for name, values in result.items():
        length = SOURCE_LENGTH if name.startswith("source") else LENGTH
        filler = {"labels": IGNORED, "positions": 0}.get(name, -1)
        values += [filler] * (length - len(values))
    result["source_tokens"] = [rng.randrange(VOCABULARY) for _ in range(SOURCE_LENGTH)]
    result["tokens"] = [rng.randrange(VOCABULARY) for _ in range(LENGTH)]
    return result
