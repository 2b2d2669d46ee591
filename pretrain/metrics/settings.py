"""The logging and evaluation parts of the config."""

from typing import Literal

from pydantic import Field

from pretrain.settings import NonNegativeFloat, NonNegativeInt, PositiveInt, Settings


class WandbSettings(Settings):
    """Weights & Biases. The key comes from the environment or netrc, never from a config."""

    mode: Literal["auto", "offline", "online", "disabled"] = "auto"
    """`auto`: online where a key is configured (WANDB_API_KEY or netrc), else offline into the run's `wandb/`; W&B's own
    WANDB_MODE=offline or =disabled, as sites set it whose nodes have no network, is kept."""
    project: str = "pretrain"
    entity: str | None = None


class LoggingSettings(Settings):
    """What is written while training. `metrics.jsonl` gets every step; ranks synchronise only at the interval."""

    interval_steps: PositiveInt = 1
    wandb: WandbSettings = WandbSettings()


class SampleSettings(Settings):
    """Text that is generated at the end of a run and shown in the report."""

    prompts: tuple[str, ...] = Field(default=(), strict=False)
    max_tokens: PositiveInt = 96
    temperature: NonNegativeFloat = 0.8
    """0: greedy."""
    top_p: NonNegativeFloat = 0.95


class EvaluationSettings(Settings):
    """Validation inside the run."""

    interval_steps: PositiveInt | None = None
    """None: at the end alone."""
    sequences: PositiveInt | None = None
    """Sequences of the validation set that are used, the same ones every time; None: all."""
    baseline: Literal["bigram", "none"] = "bigram"
    """`bigram`: at the end, the loss of an absolute-discounting bigram model fitted on the tokens that the model saw."""
    beam_size: NonNegativeInt = 0
    """Of translations; 0: greedy."""
    translations: PositiveInt = 256
    """Held-out pairs, evenly spread, that are translated for chrF and whose sources are shuffled to see whether they are read."""
