"""The independent reference, as `pretrain parity` uses it."""

from pretrain.parity.reference import Batch, Dropout, Forward, ReferenceModel, Weights
from pretrain.parity.reference_training import (
    IGNORED,
    ReferenceRun,
    ReferenceStep,
    learning_rate,
    token_losses,
    train,
)

__all__ = [
    "IGNORED",
    "Batch",
    "Dropout",
    "Forward",
    "ReferenceModel",
    "ReferenceRun",
    "ReferenceStep",
    "Weights",
    "learning_rate",
    "token_losses",
    "train",
]
