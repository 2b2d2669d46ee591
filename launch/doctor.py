"""`pretrain doctor`: what this machine has, what is missing, and the fix.

Nothing heavy is imported: versions come from installed metadata, GPUs from the driver. Only torch itself is started, in a
process of its own, because an installed torch that cannot load (a missing library, a wrong processor) is a common fault.
"""

import importlib.util
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from launch.machine import gpu_capabilities, this_machine, torch_has_cuda, usable_cores
from pretrain.metrics.settings import WandbSettings
from pretrain.resolve import FAST_BF16_FLAGS

NEEDED_FREE_GB = 5
LOWEST_PYTHON, HIGHEST_PYTHON = (3, 11), (3, 13)
OPTIONAL_PACKAGES = {
    "ray": "preparation runs in-process without it (--backend local)",
    "datasets": "only corpora from a hub need it",
    "wandb": "runs are not mirrored to W&B without it; metrics.jsonl and report.html have everything",
}

Level = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    level: Level
    text: str
    fix: str = ""


def doctor() -> int:
    """Prints the findings. Returns 1 where something that is needed is missing, else 0."""
    findings = [finding for look in CHECKS for finding in look()]
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        print(f"{finding.level:8}{finding.subject:{width + 2}}{finding.text}")
        if finding.fix:
            print(f"{'':8}{'':{width + 2}}-> {finding.fix}")
    missing = sum(finding.level == "missing" for finding in findings)
    print(
        "\neverything that is needed is here" if not missing else f"\n{missing} needed thing(s) missing; see -> above"
    )
    return 1 if missing else 0


def check_python() -> list[Finding]:
    """The interpreter's version."""
    version = platform.python_version()
    if LOWEST_PYTHON <= sys.version_info[:2] <= HIGHEST_PYTHON:
        return [Finding("python", "ok", f"{version} ({sys.executable})")]
    wanted = f"{'.'.join(map(str, LOWEST_PYTHON))} to {'.'.join(map(str, HIGHEST_PYTHON))}"
    return [Finding("python", "missing", f"{version}; {wanted} is needed", "make a new environment with such a Python")]


def check_packages() -> list[Finding]:
    """Every package that the project depends on, at a version that it was tried with."""
    requirements = [Requirement(text) for text in requirement_texts()]
    return [_package(r) for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]


def requirement_texts() -> list[str]:
    """What the installed project asks for; of a checkout that is not installed, what its pyproject.toml says."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.requires("pretrain") or []
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"]["dependencies"]


def _package(requirement: Requirement) -> Finding:
    name = requirement.name
    fix = f"pip install '{requirement}'"
    use = OPTIONAL_PACKAGES.get(name)
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "note" if use else "missing", f"not installed{f'; {use}' if use else ''}", fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding(name, "note" if use else "missing", f"{version} is outside {requirement.specifier}", fix)
    return Finding(name, "ok", version)


def check_torch() -> list[Finding]:
    """Whether torch loads, and for which devices it was built."""
    if importlib.util.find_spec("torch") is None:
        return []
    code = "import torch; print(torch.__version__, torch.distributed.is_available(), torch.version.cuda)"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return [
            Finding("torch loads", "missing", "import torch did not end in 120 s", "look at the disk and at the memory")
        ]
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [Finding("torch loads", "missing", last, "pip install --force-reinstall torch")]
    _, distributed, cuda = done.stdout.split()
    found = [Finding("torch loads", "ok", "built for the CPU" if cuda == "None" else f"built for CUDA {cuda}")]
    if distributed != "True":
        found.append(
            Finding("torch.distributed", "missing", "not in this build of torch", "install torch from its own wheels")
        )
    return found


def check_devices() -> list[Finding]:
    """Cores, processor features, GPUs."""
    machine = this_machine()
    fast = sorted(machine.cpu_flags & FAST_BF16_FLAGS)
    precision = f"bf16 in hardware ({', '.join(fast)})" if fast else "no bf16 in hardware: precision auto is fp32"
    text = f"{platform.machine()}, {usable_cores()} core(s), {precision}"
    stages = "" if machine.cores > 1 else "with one core pp=auto is 1"
    found = [Finding("cpu", "note" if stages else "ok", text, stages)]
    visible = len(gpu_capabilities())
    if visible and not torch_has_cuda():
        text = f"{visible} visible, but torch was built without CUDA"
        found.append(Finding("gpu", "note", text, "install a CUDA build of torch (TORCH_INDEX_URL of the Makefile)"))
    elif machine.gpus:
        found.append(Finding("gpu", "ok", f"{machine.gpus} usable, {'with' if machine.gpu_bf16 else 'without'} bf16"))
    else:
        found.append(Finding("gpu", "ok", "none visible: runs use the CPU"))
    return found


def check_disk() -> list[Finding]:
    """Room for data, checkpoints and shared memory."""
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    text = f"{free:.1f} GB free in {Path.cwd()}"
    found = [Finding("disk", "ok", text)]
    if free < NEEDED_FREE_GB:
        found = [
            Finding(
                "disk",
                "note",
                text,
                f"the quick start wants {NEEDED_FREE_GB} GB: free some, or set run.dir and data.dir",
            )
        ]
    shared = Path("/dev/shm")
    if shared.is_dir() and (room := shutil.disk_usage(shared).free / 1e9) < 0.1:
        found.append(
            Finding(
                "shared memory", "note", f"{room:.2f} GB in {shared}", "in a container: start it with --shm-size=1g"
            )
        )
    return found


def check_wandb() -> list[Finding]:
    """Where runs would be mirrored. The key itself is never read into the output."""
    from pretrain.metrics.tracker import wandb_mode

    mode = wandb_mode(WandbSettings())
    texts = {
        "online": "a key is configured: runs are mirrored online",
        "offline": "no key: runs are kept offline in the run's wandb/ (`wandb sync` uploads one later)",
        "disabled": "switched off by WANDB_MODE",
    }
    return [Finding("wandb mode", "ok", texts[mode])]


CHECKS: tuple[Callable[[], list[Finding]], ...] = (
    check_python,
    check_packages,
    check_torch,
    check_devices,
    check_disk,
    check_wandb,
)
"""In the order in which they are printed."""
