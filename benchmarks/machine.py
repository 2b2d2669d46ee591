"""What a measurement was made on: processor, versions, settings, and the matrix product's best speed."""

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.processor import cpu_name

Shape = tuple[int, int, int]
"""Of a product: (rows, inner, columns)."""


def matmul_peak_flops(
    dtype: torch.dtype, shapes: Sequence[Shape], device: torch.device, clock: Callable[[], float], repeats: int = 10
) -> float:
    """Best FLOP/s of a matrix product over the shapes, measured now by `clock`; random data, the best of the repeats."""
    finish = finisher(device)
    best = 0.0
    for rows, inner, columns in shapes:
        a, b = torch.randn(rows, inner).to(device, dtype), torch.randn(columns, inner).to(device, dtype)
        torch.nn.functional.linear(a, b)
        finish()
        for _ in range(repeats):
            start = clock()
            torch.nn.functional.linear(a, b)
            finish()
            best = max(best, 2 * rows * inner * columns / (clock() - start))
    return best


def finisher(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done what was queued."""
    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, threads and versions, as they go into a results file."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "deepspeed": version("deepspeed"),
    }
