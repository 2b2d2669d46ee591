"""The models, batches and layouts of the parity matrix: tiny, but with everything that makes layouts disagree.

Vocabulary 61 divides by no tp; llama's key-value heads are grouped, PaLM's is one (replicated under tp); windows hold several
documents and padding; targets are so unequally spread over micro-batches that any mean of means is far from the mean; one
micro-batch is padding alone. Initial weights are larger than in training (std 0.2): logits then tell tokens apart, attention
is far from uniform, and a fault anywhere reaches the loss. Every step is clipped, to a norm so small that Adam's epsilon of 1e-6
rises above the rounding noise of fp32, which Adam would otherwise blow up to whole learning rates.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import yaml

from pretrain.config import RunConfig
from pretrain.data.micro_batch import MicroBatch
from pretrain.parallel.layout import ParallelLayout
from pretrain.parity.batches import BatchMaker

STEPS = 5
TOTAL_STEPS = 8
"""Length of the schedule: the runs end in the middle of its decay."""
SEQUENCES, MICRO_SEQUENCES = 8, 2
LENGTH, SOURCE_LENGTH = 16, 24
VOCABULARY = 61

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    name: str
    model: dict[str, Any]
    loss: dict[str, Any]
    schedule: dict[str, Any]
    sequences: int = SEQUENCES
    """Of a global batch."""
    seed: int = 0
    """Of the weights. Those of experts are such that no choice of the reference is near a tie."""

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
            "run": {"seed": self.seed},
            "model": _SIZE | self.model,
            "layout": asdict(layout) | {"zero_stage": setup.zero_stage, "sequence_parallel": split},
            "data": data,
            "optimizer": {"peak_lr": 1e-3, "epsilon": 1e-6, "weight_decay": 0.1, "clip_norm": 0.03},
            "schedule": self.schedule,
            "train": {
                "steps": TOTAL_STEPS,
                "global_batch_tokens": self.sequences * LENGTH,
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
    "max_sequence_length": 24,
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
_EXPERTS = {"num_experts": 4, "experts_per_token": 2, "d_ff": 24}
_MOE_SHARED = _EXPERTS | {"num_shared_experts": 1, "auxiliary_loss": 0.05, "router_z_loss": 0.01}
_MOE_BIAS = _EXPERTS | {"score": "sigmoid", "balance": "bias", "bias_update_rate": 0.02, "capacity_factor": 1.0}
_MOE_SWITCH = _EXPERTS | {"experts_per_token": 1, "normalize_weights": False, "auxiliary_loss": 0.1}
_Z_LOSS = {"z_loss": 0.01}
_SMOOTHING = {"label_smoothing": 0.1}

CASES = {
    case.name: case
    for case in (
        Case("llama-untied", {**_LLAMA, "embeddings": "untied"}, _Z_LOSS | _SMOOTHING, _COSINE),
        Case("llama-tied", {**_LLAMA, "embeddings": "tied"}, _Z_LOSS, _COSINE),
        Case("qwen3-tied", {**_LLAMA, "embeddings": "tied", "qk_norm": "head"}, {}, _COSINE),
        Case("gpt3-tied", {**_GPT3, "embeddings": "tied"}, _SMOOTHING, {"name": "linear", "warmup_steps": 1}),
        Case("gpt3-untied", {**_GPT3, "embeddings": "untied"}, {}, _COSINE),
        Case("gpt3-short", {**_GPT3, "embeddings": "untied", "num_layers": 2}, {}, _COSINE),
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
            {**_TRANSFORMER, "embeddings": "untied", "norm_position": "pre", "positions": "learned", "num_kv_heads": 2},
            _Z_LOSS,
            _COSINE,
        ),
        Case("moe-shared", {**_LLAMA, "embeddings": "untied", "moe": _MOE_SHARED}, _Z_LOSS, _COSINE, seed=1),
        Case(
            "moe-bias",
            {**_GPT3, "embeddings": "tied", "moe": _MOE_BIAS | {"routed_scale": 2.5, "first_dense_layers": 1}},
            _SMOOTHING,
            _COSINE,
            seed=2,
        ),
        Case(
            "moe-transformer", {**_TRANSFORMER, "embeddings": "tied", "moe": _MOE_SWITCH}, _SMOOTHING, _COSINE, seed=2
        ),
    )
}
_SEEDS_OF_FIVE = {"moe-bias": 11}
FIVE = {
    f"{name}-five": replace(
        CASES[name], name=f"{name}-five", sequences=5 * MICRO_SEQUENCES, seed=_SEEDS_OF_FIVE.get(name, 0)
    )
    for name in ("gpt3-tied", "llama-untied", "moe-bias", "transformer-tied", "transformer-untied")
}
"""Those that a rank takes through the model in five micro-batches: more than stages, and no multiple of them."""
_FOUR = tuple(CASES)
CASES |= FIVE


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
_FULL, _SELECTIVE = "train.recompute=full", "train.recompute=selective"
_LOSS_TILES, _FEED_TILES = "train.loss_tile_tokens=7", "train.feed_forward_tile_tokens=5"
"""Tiles that divide nothing, and hold the tokens of more than one sequence."""
_SPLIT = "layout.sequence_parallel=enabled"
MEMORY = [
    ("transformer-tied", Setup(ParallelLayout(tp=2), more=(_FULL,))),
    ("transformer-tied", Setup(ParallelLayout(tp=2), more=(_SELECTIVE, _SPLIT))),
    ("gpt3-tied", Setup(ParallelLayout(tp=2), more=(_FULL, _SPLIT))),
    ("palm-untied", Setup(ParallelLayout(tp=2), more=(_SELECTIVE, _FEED_TILES, _SPLIT))),
    ("transformer-tied", Setup(ParallelLayout(pp=2), more=(_SELECTIVE,))),
    ("llama-untied", Setup(ParallelLayout(pp=2), more=(_FULL, _LOSS_TILES))),
    ("transformer-tied", Setup(ParallelLayout(tp=2, pp=2), more=(_FULL, _LOSS_TILES, _FEED_TILES))),
    ("llama-tied", Setup(ParallelLayout(dp=2), 3, (_FULL, _FEED_TILES))),
    ("transformer-tied", Setup(ParallelLayout(dp=2), 3, (_SELECTIVE, _LOSS_TILES))),
    ("palm-untied", Setup(ParallelLayout(tp=2), more=(_LOSS_TILES,))),
    ("llama-tied", Setup(ParallelLayout(tp=2), more=(_LOSS_TILES, _SPLIT))),
    ("gpt3-untied", Setup(ParallelLayout(), 0, (_LOSS_TILES, _FEED_TILES))),
    ("qwen3-tied", Setup(ParallelLayout(tp=4))),
    ("llama-tied", Setup(ParallelLayout(ring=2), more=(_FULL, _LOSS_TILES))),
    ("transformer-tied", Setup(ParallelLayout(ulysses=2), 3, more=(_SELECTIVE, _LOSS_TILES))),
]
"""What saves memory, and what it has to leave as it is."""
CONTEXT = [
    ("llama-untied", Setup(ParallelLayout(ulysses=2))),
    ("transformer-tied", Setup(ParallelLayout(ulysses=2))),
    ("palm-tied", Setup(ParallelLayout(ulysses=2))),
    ("gpt3-tied", Setup(ParallelLayout(ulysses=2), 0)),
    ("transformer-tied", Setup(ParallelLayout(ulysses=2), 2)),
    ("gpt3-untied", Setup(ParallelLayout(ulysses=2), 3)),
    ("transformer-tied", Setup(ParallelLayout(ulysses=2), 3)),
    ("llama-tied", Setup(ParallelLayout(ulysses=2, pp=2))),
    ("transformer-tied", Setup(ParallelLayout(ulysses=2, pp=2))),
    ("palm-untied", Setup(ParallelLayout(ulysses=2, tp=2))),
    ("transformer-tied", Setup(ParallelLayout(ulysses=2, tp=2))),
    ("llama-tied", Setup(ParallelLayout(ulysses=2, dp=2))),
    ("gpt3-tied", Setup(ParallelLayout(ulysses=4))),
    ("llama-untied", Setup(ParallelLayout(ring=2))),
    ("transformer-tied", Setup(ParallelLayout(ring=2))),
    ("palm-tied", Setup(ParallelLayout(ring=2))),
    ("gpt3-tied", Setup(ParallelLayout(ring=2), 3)),
    ("transformer-untied", Setup(ParallelLayout(ring=4))),
    ("transformer-tied", Setup(ParallelLayout(ring=4))),
    ("gpt3-untied", Setup(ParallelLayout(ring=4))),
    ("transformer-tied", Setup(ParallelLayout(ring=2, ulysses=2))),
    ("palm-untied", Setup(ParallelLayout(ring=2, ulysses=2))),
    ("llama-tied", Setup(ParallelLayout(ring=2, tp=2), more=(_SPLIT,))),
    ("transformer-tied", Setup(ParallelLayout(ring=2, tp=2), more=(_SPLIT,))),
    ("transformer-tied", Setup(ParallelLayout(ring=2, dp=2))),
    ("transformer-tied", Setup(ParallelLayout(ring=2, pp=2), more=(_SELECTIVE,))),
    ("llama-tied", Setup(ParallelLayout(ulysses=2, tp=2), more=(_SELECTIVE, _LOSS_TILES, _SPLIT))),
    ("moe-shared", Setup(ParallelLayout(ulysses=2))),
    ("moe-bias", Setup(ParallelLayout(ulysses=2, pp=2))),
    ("moe-transformer", Setup(ParallelLayout(ulysses=2, pp=2))),
    ("moe-transformer", Setup(ParallelLayout(ring=2))),
    ("moe-shared", Setup(ParallelLayout(ring=2, ep=2))),
]
"""Sequences over several ranks."""
EXPERTS = [
    ("moe-shared", Setup(ParallelLayout(tp=2), more=(_SPLIT,))),
    ("moe-bias", Setup(ParallelLayout(tp=2), more=(_SPLIT, _FULL))),
    ("moe-transformer", Setup(ParallelLayout(tp=2), 0, (_SPLIT,))),
    ("moe-shared", Setup(ParallelLayout(pp=2), more=(_SELECTIVE, _LOSS_TILES))),
    ("moe-transformer", Setup(ParallelLayout(pp=4))),
    ("moe-shared", Setup(ParallelLayout(dp=2), 0)),
    ("moe-bias", Setup(ParallelLayout(dp=2), 2)),
    ("moe-transformer", Setup(ParallelLayout(dp=2), 3)),
    ("moe-shared", Setup(ParallelLayout(tp=2, dp=2), 3)),
    ("moe-shared", Setup(ParallelLayout(dp=2, ep=2), 0)),
    ("moe-shared", Setup(ParallelLayout(dp=2, ep=2))),
    ("moe-bias", Setup(ParallelLayout(dp=2, ep=2))),
    ("moe-transformer", Setup(ParallelLayout(dp=2, ep=2))),
    ("moe-shared", Setup(ParallelLayout(dp=2, ep=2), 2, (_FULL,))),
    ("moe-bias", Setup(ParallelLayout(dp=4, ep=2), 2)),
    ("moe-shared", Setup(ParallelLayout(dp=4, ep=4))),
    ("moe-shared", Setup(ParallelLayout(dp=2, ep=2, pp=2))),
    ("moe-bias", Setup(ParallelLayout(dp=2, ep=2, pp=2))),
    ("moe-transformer", Setup(ParallelLayout(dp=2, ep=2, pp=2))),
    ("moe-shared", Setup(ParallelLayout(dp=2, ep=2, tp=2))),
    ("moe-bias", Setup(ParallelLayout(dp=2, ep=2, tp=2), more=(_SPLIT,))),
    ("moe-transformer", Setup(ParallelLayout(dp=2, ep=2, tp=2), 0)),
    ("moe-bias", Setup(ParallelLayout(ulysses=2))),
    ("moe-shared", Setup(ParallelLayout(ulysses=2, ep=2))),
    ("moe-bias", Setup(ParallelLayout(ring=2, ep=2))),
    ("moe-transformer", Setup(ParallelLayout(ring=2))),
]
"""Experts, whole on each rank or spread over them."""
_ZB_H1 = "layout.pipeline_schedule=zb-h1"
PIPELINES = [
    *((case, Setup(ParallelLayout(pp=3), more=more)) for case in FIVE for more in ((), (_ZB_H1,))),
    *(
        (case, Setup(ParallelLayout(**axes), more=(_ZB_H1,)))
        for case in ("llama-tied", "gpt3-tied", "transformer-tied")
        for axes in ({"pp": 2}, {"pp": 4}, {"pp": 2, "tp": 2}, {"pp": 2, "dp": 2})
    ),
    ("palm-untied", Setup(ParallelLayout(pp=2, tp=2), more=(_ZB_H1,))),
    ("moe-bias", Setup(ParallelLayout(pp=2), more=(_ZB_H1,))),
    ("moe-shared", Setup(ParallelLayout(pp=2, dp=2, ep=2), more=(_ZB_H1,))),
    ("llama-tied", Setup(ParallelLayout(pp=2, ring=2), more=(_ZB_H1,))),
    ("transformer-tied", Setup(ParallelLayout(pp=2, ulysses=2), more=(_ZB_H1,))),
    ("transformer-tied", Setup(ParallelLayout(pp=2), more=(_ZB_H1, _FULL))),
    ("transformer-tied", Setup(ParallelLayout(pp=2, tp=2), more=(_ZB_H1, _SELECTIVE, _LOSS_TILES, _FEED_TILES))),
]
"""Stages and the order of their work."""
_OFFLOAD = "layout.offload=optimizer"
OFFLOAD = [
    ("gpt3-tied", Setup(ParallelLayout(dp=2), 1, (_OFFLOAD,))),
    ("palm-tied", Setup(ParallelLayout(tp=2), 2, (_OFFLOAD,))),
    ("transformer-tied", Setup(ParallelLayout(dp=2), 3, ("layout.offload=optimizer_and_parameters",))),
    ("gpt3-tied", Setup(ParallelLayout(pp=2), 1, (_OFFLOAD,))),
    # The first stage has no vectors: stages have unequal numbers of parameter groups.
    ("gpt3-short", Setup(ParallelLayout(pp=4), 1, (_OFFLOAD,))),
    ("gpt3-short", Setup(ParallelLayout(pp=4))),
    ("moe-shared", Setup(ParallelLayout(dp=2, ep=2), 1, (_OFFLOAD,))),
    ("transformer-tied", Setup(ParallelLayout(pp=2, tp=2), 1, (_OFFLOAD, _ZB_H1))),
]
"""Masters, moments and parameters in the host's memory: on a CPU the same memory, by the same code."""
_LISTED = (
    *(Setup(ParallelLayout(**axes)) for axes in ({"tp": 2}, {"tp": 4}, {"pp": 2}, {"pp": 4}, {"tp": 2, "pp": 2})),
    Setup(ParallelLayout(tp=2), more=(_SPLIT,)),
    *(Setup(ParallelLayout(dp=2), zero_stage) for zero_stage in (0, 1, 2, 3)),
    *(Setup(ParallelLayout(dp=2, **axis)) for axis in ({"tp": 2}, {"pp": 2})),
    *(Setup(ParallelLayout(**axes)) for axes in ({"ulysses": 2}, {"ulysses": 2, "pp": 2}, {"ring": 2})),
)
_FAMILIES = ("llama-tied", "llama-untied", "moe-bias", "moe-shared", "transformer-tied", "transformer-untied")
"""Decoder, experts and encoder-decoder, tied and untied; two key-value heads in all but one of each."""
LISTED = [(case, setup) for case in _FAMILIES for setup in _LISTED]
"""What every family must do under every kind of parallelism; pp=3 is in PIPELINES, eight ranks in EIGHT, ep in EXPERTS."""
MATRIX = [(case, setup) for case in _FOUR for setup in _GRIDS] + [
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
    *MEMORY,
    *CONTEXT,
    *EXPERTS,
    *PIPELINES,
    *OFFLOAD,
    *LISTED,
]
MATRIX = list(dict.fromkeys(MATRIX))
"""(case, setup): what the parity test runs."""
EIGHT = [
    ("gpt3-tied", Setup(ParallelLayout(pp=2, dp=2, tp=2))),
    ("llama-untied", Setup(ParallelLayout(pp=2, dp=2, tp=2))),
    ("transformer-untied", Setup(ParallelLayout(pp=2, dp=2, tp=2))),
    ("moe-bias", Setup(ParallelLayout(pp=2, dp=2, tp=2))),
    ("moe-shared", Setup(ParallelLayout(pp=2, dp=2, tp=2, ep=2))),
    ("transformer-tied", Setup(ParallelLayout(pp=2, dp=2, tp=2))),
    ("transformer-tied", Setup(ParallelLayout(pp=2, dp=2, tp=2), more=(_ZB_H1,))),
]
"""What it runs on eight ranks."""


def batch_maker(case: Case) -> BatchMaker:
    """The batches of a case."""
    source = SOURCE_LENGTH if case.is_encoder_decoder else None
    return BatchMaker(case.sequences, MICRO_SEQUENCES, LENGTH, VOCABULARY, source)


def global_batch(case: Case, step: int) -> Batch:
    """All sequences of a step (counted from 0): the model's inputs, and `labels`."""
    return dict(batch_maker(case).global_batch(step))


def micro_batches(case: Case, step: int, layout: ParallelLayout, data_rank: int) -> list[MicroBatch]:
    """The part of the step of a rank of the batch axis: a contiguous slice of its micro-batches."""
    return batch_maker(case).micro_batches(layout.dp, step, data_rank)
