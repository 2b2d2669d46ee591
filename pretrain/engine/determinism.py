"""The deterministic mode: the same layout gives the same bits on every run.

Initial weights, dropout and the order of samples are functions of the seed in any mode (parallel/random.py); what is left are
kernels that add in whatever order threads arrive (embedding gradients, scatter_add) and libraries that choose an algorithm by
timing it. The launcher sets what CUDA's libraries read when they are loaded (launch/torchrun.py). Another layout still adds in
another order: bits differ between layouts, within the tolerance of parity.

Cost: on a CPU none, its kernels are deterministic; on CUDA slower kernels for the operators above, not measured.
"""

from typing import Literal

import torch
import torch.utils.deterministic

Determinism = Literal["fastest", "bitwise"]


def set_determinism(mode: Determinism) -> None:
    """Sets torch's process-wide switches. In `bitwise` an operator without a deterministic kernel raises RuntimeError."""
    bitwise = mode == "bitwise"
    # The same switch as `use_deterministic_algorithms`, which loads torch's compiler first: 2 CPU-seconds in every rank.
    torch.set_deterministic_debug_mode("error" if bitwise else "default")
    torch.backends.cudnn.deterministic = bitwise
    torch.backends.cudnn.benchmark = False
    # By default torch then fills every fresh buffer with NaN, to find readers of what nobody wrote: a cost, and no more bits.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (unknown to types)
