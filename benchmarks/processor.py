"""What a results file says of the machine and of the command that made it: no path of the machine, and no torch."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path


def cpu_name() -> str:
    """As the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def load() -> list[float]:
    """Load averages of 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def public_command(program: str, words: Sequence[str]) -> str:
    """A command as others may read it: of a path its last part alone."""
    return " ".join([program, *map(public_text, words)])


def public_text(text: str) -> str:
    """A text in which every path from the root is its last part alone."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@~-]+/)*(?=[\w.+@~-])", "", text)
