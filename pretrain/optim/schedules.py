"""Learning rates as pure functions of the step: no state, nothing to save, nothing to restore.

`step` is the number of attempts of the optimizer that were made before: the first one uses `lr(0)`. The published formulas
count from 1, so the functions here work on t = step + 1. Warm-up rises linearly and reaches the peak at t = warmup_steps; the
decay reaches `final_fraction` of the peak at t = decay_steps and stays there. A step that was skipped keeps its place.

Not taken: torch's `lr_scheduler` classes, whose recursive state drifts by rounding and must be saved and restored with care.
"""

import math
from collections.abc import Callable
from functools import partial

from pretrain.optim.settings import ScheduleSettings

Schedule = Callable[[int], float]
"""Maps the number of attempts made before to the learning rate of the next one."""


def build_schedule(settings: ScheduleSettings, *, peak_lr: float, total_steps: int, d_model: int) -> Schedule:
    """The schedule of a run.

    Args:
        settings: its shape and durations.
        peak_lr: learning rate at the end of warm-up; a factor on the published schedule for `noam`.
        total_steps: length of the run, where the settings name no `decay_steps`.
        d_model: width of the model, which scales `noam`.
    """
    warmup = settings.warmup_steps
    if settings.name == "noam":
        return partial(noam, peak_lr=peak_lr, warmup_steps=warmup, d_model=d_model)
    if settings.name == "constant":
        return partial(constant, peak_lr=peak_lr, warmup_steps=warmup)
    shape = {"cosine": cosine, "linear": linear}[settings.name]
    decay = settings.decay_steps or total_steps
    return partial(
        shape, peak_lr=peak_lr, warmup_steps=warmup, decay_steps=decay, final_fraction=settings.final_fraction
    )


def constant(step: int, *, peak_lr: float, warmup_steps: int) -> float:
    """Warm-up, then the peak for good."""
    return peak_lr * _warmup(step, warmup_steps)


def linear(step: int, *, peak_lr: float, warmup_steps: int, decay_steps: int, final_fraction: float) -> float:
    """Warm-up, then a straight line from the peak to its final fraction."""
    left = 1.0 - _decayed(step, warmup_steps, decay_steps)
    return peak_lr * _warmup(step, warmup_steps) * (final_fraction + (1.0 - final_fraction) * left)


def cosine(step: int, *, peak_lr: float, warmup_steps: int, decay_steps: int, final_fraction: float) -> float:
    """Warm-up, then half a cosine from the peak to its final fraction (Loshchilov and Hutter 2017, SGDR, without restarts)."""
    left = 0.5 * (1.0 + math.cos(math.pi * _decayed(step, warmup_steps, decay_steps)))
    return peak_lr * _warmup(step, warmup_steps) * (final_fraction + (1.0 - final_fraction) * left)


def noam(step: int, *, peak_lr: float, warmup_steps: int, d_model: int) -> float:
    """d_model ** -0.5 x min(t ** -0.5, t x warmup ** -1.5) x peak_lr (Vaswani et al. 2017, section 5.3)."""
    t = step + 1
    rising = t * warmup_steps**-1.5 if warmup_steps else math.inf
    return peak_lr * d_model**-0.5 * min(t**-0.5, rising)


def _warmup(step: int, warmup_steps: int) -> float:
    """Share of the peak that warm-up allows, in (0, 1]."""
    return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0


def _decayed(step: int, warmup_steps: int, decay_steps: int) -> float:
    """Share of the decay that has passed, in [0, 1]."""
    span = decay_steps - warmup_steps
    if span <= 0:
        return 0.0 if step + 1 <= warmup_steps else 1.0
    return min(1.0, max(0.0, (step + 1 - warmup_steps) / span))
