"""How much memory this process holds."""

import resource
import sys
from pathlib import Path

import torch


def device_peak_bytes(device: torch.device) -> float:
    """Most memory of a GPU that tensors have held so far; 0 on a CPU."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else 0.0


def host_bytes() -> float:
    """Resident memory; its peak so far where the system does not tell the present."""
    try:
        return float(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize())
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
