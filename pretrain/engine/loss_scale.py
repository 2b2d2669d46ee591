"""The dynamic loss scale of fp16 training (Micikevicius et al. 2018, Mixed precision training, section 3.2), as DeepSpeed has it.

The loss is multiplied by the scale before backward, so that small gradients do not vanish in fp16; an overflow skips the step on
all ranks and halves the scale, a long run without one doubles it. It is state of the training: a resumed run that starts at
another scale rounds otherwise, and may skip steps that the interrupted one did not.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LossScale:
    """Where a dynamic loss scale stands; the same on every rank."""

    scale: float
    attempts: int
    """Of the optimizer, so far."""
    last_overflow: int
    """The attempt of the last overflow, counted from 0; -1 without one."""
    hysteresis: int
    """Overflows until the scale is halved."""


def loss_scale_of(optimizer: Any) -> LossScale | None:
    """That of a DeepSpeed optimizer; None where nothing is scaled."""
    scaler = getattr(optimizer, "loss_scaler", None)
    if scaler is None or not scaler.dynamic:
        return None
    return LossScale(scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter, scaler.cur_hysteresis)


def set_loss_scale(optimizer: Any, state: LossScale) -> None:
    """Puts a saved one back."""
    scaler = optimizer.loss_scaler
    scaler.cur_scale, scaler.cur_iter = state.scale, state.attempts
    scaler.last_overflow_iter, scaler.cur_hysteresis = state.last_overflow, state.hysteresis
