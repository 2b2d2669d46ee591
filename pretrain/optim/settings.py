"""The optimizer and schedule parts of the config."""

from typing import Literal

from pydantic import Field

from pretrain.settings import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings


class OptimizerSettings(Settings):
    """AdamW (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    peak_lr: PositiveFloat = 3e-4
    """Learning rate at the end of warm-up; for `noam` a factor on the published schedule."""
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.95), strict=False)
    epsilon: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    """Applied to matrices; vectors (biases, norms) are never decayed."""
    clip_norm: PositiveFloat | None = 1.0
    """Largest global gradient norm; None: no clipping."""
    max_skipped_in_a_row: PositiveInt = 10
    """Steps in a row that may be skipped for a gradient that is not finite; at this many the run stops, for it has diverged."""


class ScheduleSettings(Settings):
    """Learning rate as a function of the step; durations in steps."""

    name: Literal["cosine", "linear", "constant", "noam"] = "cosine"
    """`noam`: d_model ** -0.5 x min(step ** -0.5, step x warmup ** -1.5) (Vaswani et al. 2017, section 5.3)."""
    warmup_steps: NonNegativeInt = 0
    decay_steps: PositiveInt | None = None
    """Steps from 0 to the end of the decay; None: the length of the run."""
    final_fraction: Fraction = 0.1
    """Learning rate at the end of the decay, as a share of the peak."""
