"""The parity check, as `pretrain parity` makes it."""

from pretrain.parity.verdict import (
    BOUNDS,
    Deviation,
    Quantity,
    Recording,
    Verdict,
    compare,
    describe,
    failed,
    local_part,
    whole_tensors,
)

__all__ = [
    "BOUNDS",
    "Deviation",
    "Quantity",
    "Recording",
    "Verdict",
    "compare",
    "describe",
    "failed",
    "local_part",
    "whole_tensors",
]
