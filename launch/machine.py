"""What this machine has, found without importing torch: cores, processor flags, GPUs, and whether torch was built for them.

torch would take 2 to 4 seconds to say the same, and a config that asks for a GPU which is not there should fail at once. GPUs
are asked of the driver's own library, so that what CUDA_VISIBLE_DEVICES hides is hidden here too.
"""

import ctypes
import importlib.util
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from pretrain.resolve import Machine

_COMPUTE_CAPABILITY_MAJOR = 75
_BF16_CAPABILITY = 8


def this_machine() -> Machine:
    """The facts that `auto` values and hardware rules are judged on."""
    capabilities = gpu_capabilities() if torch_has_cuda() else []
    return Machine(
        cores=usable_cores(),
        cpu_flags=cpu_flags(),
        gpus=len(capabilities),
        gpu_bf16=all(major >= _BF16_CAPABILITY for major in capabilities),
    )


def usable_cores() -> int:
    """Cores that this process may use; a container's or a batch job's affinity is respected, and so is a CPU quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags; none where the system does not list them."""
    with suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return frozenset(found[1].split()) if found else frozenset()
    return frozenset()


def torch_folder() -> Path | None:
    """Where torch is installed; it is not imported."""
    spec = importlib.util.find_spec("torch")
    return Path(spec.origin).parent if spec and spec.origin else None


def torch_has_cuda() -> bool:
    """Whether the installed torch was built for CUDA."""
    folder = torch_folder()
    return folder is not None and any((folder / "lib").glob("libtorch_cuda*"))


def gpu_capabilities() -> list[int]:
    """Major compute capability of each visible NVIDIA GPU; none without a driver."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, major = ctypes.c_int(0), ctypes.c_int(0)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = []
    for index in range(count.value):
        device = ctypes.c_int(0)
        if not driver.cuDeviceGet(ctypes.byref(device), index):
            driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
            found.append(major.value)
    return found
