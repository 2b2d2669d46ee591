"""From a config and the texts of layouts to the configs that parity runs; refusals come before torch is imported.

A layout's text is comma-separated `key=value`: a bare key is one of the layout's (`tp=2`), a dotted one any field of the config
(`train.recompute=full`). It starts from a plain layout of one rank, not from the config's, so that a text means what it says.

What parity changes of a config, `--set` and the text may change back: clipping at 0.03 in every step, Adam's epsilon of 1e-6 (at
1e-8 Adam turns the rounding noise of zero gradients into whole learning rates), a schedule that ends a few steps behind the
last, a peak learning rate of at most 1e-3, `precision: auto` as fp32.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.config import RunConfig, load_config
from pretrain.errors import ConfigError
from pretrain.model.flops import num_parameters
from pretrain.parallel.settings import LayoutSettings
from pretrain.resolve import Machine, World, resolve
from pretrain.rules import check_config

DEFAULT_VOCABULARY = 251
"""Stands in where neither the config nor a tokenizer tells it: a prime, which no tp divides."""
STEPS_BEHIND = 3
"""Steps of the schedule behind the last that is run: the runs end in the middle of its decay."""
WARMUP_STEPS = 2
CLIP_NORM = 0.03
EPSILON = 1e-6
HIGHEST_LR = 1e-3
"""Above it Adam's steps are long beside small initial weights, and rounding shows in them."""
PLAIN_LAYOUT = "layout={tp: 1, pp: 1, dp: 1, sequence_parallel: auto, zero_stage: 1}"
_SAME_FOR_ALL = ("model.", "data.", "run.", "name")
_MEMORY_SHARE = 0.8
"""Share of the machine's memory that may be asked for."""


@dataclass(frozen=True)
class LayoutCase:
    """A config under one layout, allowed by every rule."""

    text: str
    config: RunConfig


def layout_overrides(text: str) -> list[str]:
    """`pp=2,train.recompute=full` to `--set` texts. Raises ConfigError."""
    parts, depth, start = [], 0, 0
    for index, letter in enumerate(text + ","):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    parts = parts if text.strip() else []
    for part in parts:
        if not part.partition("=")[1]:
            raise ConfigError(
                f"--layouts {text!r}: {part!r} is not KEY=VALUE; write pp=2,tp=2 or tp=2,train.recompute=full"
            )
        if part.startswith(_SAME_FOR_ALL):
            raise ConfigError(
                f"--layouts {text!r}: {part!r} would train another model than the other layouts do; say it for all: --set {part}"
            )
    keys = [part.partition("=")[0].strip().removeprefix("layout.") for part in parts]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"--layouts {text!r}: {twice} is said twice; each key has one value")
    return [part if "." in part.partition("=")[0] else f"layout.{part}" for part in parts]


def read_cases(
    name: str, overrides: Sequence[str], texts: Sequence[str], *, device: str, steps: int
) -> tuple[list[LayoutCase], list[str]]:
    """The cases of a command, and what is to be said of them.

    Args:
        name: of the config.
        overrides: `--set` texts, which hold for every layout.
        texts: of the layouts; "" is one process.
        device: `cpu` or `cuda`.
        steps: that will be run.

    Raises ConfigError with every refusal.
    """
    given = load_config(name, overrides)
    changed = [PLAIN_LAYOUT, *_changes(given, device, steps), *overrides]
    notes = [_told(given, steps)]
    cases, refused = [], []
    for text in texts:
        try:
            config = checked(load_config(name, [*changed, *layout_overrides(text)]))
            if config.train.device != device:
                raise ConfigError(f"train.device={config.train.device} is said by --device {config.train.device} here")
            cases.append(LayoutCase(text or "one process", config))
        except ConfigError as error:
            refused.append(f'layout "{text}": {error}')
    if refused:
        raise ConfigError("\n".join(refused))
    return cases, notes


def checked(config: RunConfig) -> RunConfig:
    """The config with every `auto` filled in. Raises ConfigError where a rule refuses it."""
    # A GPU's ranks are counted when they start; rules of the config alone come first.
    config = resolve(config, Machine(cores=1), World(), vocab_size=DEFAULT_VOCABULARY)
    check_config(config)
    return config


def plain(config: RunConfig, precision: str = "fp32") -> RunConfig:
    """The same training in one process, with nothing tiled or recomputed."""
    ordinary = {"recompute": "none", "loss_tile_tokens": None, "feed_forward_tile_tokens": None}
    return config.model_copy(
        update={
            "layout": LayoutSettings(dp=1, sequence_parallel="disabled"),
            "train": config.train.model_copy(update=ordinary | {"precision": precision}),
        }
    )


def check_size(cases: Sequence[LayoutCase], steps: int, memory_bytes: int | None = None) -> None:
    """Raises ConfigError where a case does not fit this machine's memory, where the reference is one process."""
    there = memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for case in cases:
        config = case.config
        parameters, needed = num_parameters(config.model), needed_bytes(config, steps)
        if needed > there * _MEMORY_SHARE:
            raise ConfigError(
                f'layout "{case.text}": {parameters:,} parameters and {config.train.global_batch_tokens:,} tokens a step need '
                f"about {needed / 2**30:,.0f} GiB here, where one process holds a float64 reference; this machine has "
                f"{there / 2**30:,.0f} GiB. Shrink the model, its parts stay the same: --set model.num_layers=2 "
                "--set model.d_model=... --set model.d_ff=... --set model.vocab_size=509 --set train.global_batch_tokens=..."
            )


def needed_bytes(config: RunConfig, steps: int) -> int:
    """An estimate: the larger of the reference's weights and activations, and what the ranks hold and give back."""
    model, batch = config.model, config.global_batch_sequences
    parameters, length = num_parameters(config.model), config.data.sequence_length
    vocabulary = model.vocab_size or DEFAULT_VOCABULARY
    layers = model.num_layers + model.num_encoder_layers
    tokens = batch * length
    # Weights, gradient, two moments, the first gradient, and the weights after each step, in float64.
    weights = 8 * parameters * (5 + steps)
    attention = 3 * model.num_heads * length * tokens * layers
    activations = 8 * (4 * tokens * vocabulary + attention + tokens * layers * (16 * model.d_model + 4 * model.d_ff))
    ranks = parameters * config.parallel_layout.data_size * (24 + 2 * 16)
    return weights + max(activations, ranks)


def _changes(config: RunConfig, device: str, steps: int) -> list[str]:
    """`--set` texts of what parity changes."""
    changes = [
        f"optimizer.epsilon={EPSILON}",
        f"optimizer.clip_norm={CLIP_NORM}",
        f"train.steps={steps + STEPS_BEHIND}",
        f"train.device={device}",
        f"schedule.warmup_steps={min(config.schedule.warmup_steps, WARMUP_STEPS)}",
        "schedule.decay_steps=null",
    ]
    if config.schedule.name != "noam":  # where it is a factor
        changes.append(f"optimizer.peak_lr={min(config.optimizer.peak_lr, HIGHEST_LR)}")
    return changes + (["train.precision=fp32"] if config.train.precision == "auto" else [])


def _told(config: RunConfig, steps: int) -> str:
    vocabulary = config.model.vocab_size
    stand_in = "" if vocabulary else f" (vocabulary of {DEFAULT_VOCABULARY}: the config leaves it to a tokenizer)"
    model = config.model.model_copy(update={"vocab_size": vocabulary or DEFAULT_VOCABULARY})
    return (
        f"{config.name}: {num_parameters(model):,} parameters{stand_in}, {config.global_batch_sequences} sequences of "
        f"{config.data.sequence_length} tokens a step, {steps} steps, every one clipped, random batches with documents, padding "
        "and unequal targets"
    )
