"""Peak resident memory of a process and of all that it starts, as Linux keeps it for each (`VmHWM` of /proc/PID/status).

Not `ru_maxrss`: a process inherits that of the one that started it, and of several children it tells the largest alone. A peak is
looked up every 20 ms, and never falls while a process lives: what is missed is the growth of its last 20 ms.
"""

import subprocess
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

INTERVAL_S = 0.02
PROC = Path("/proc")


@dataclass
class Peak:
    """Of one process."""

    command: str
    """The last that it called itself: Ray's workers change it."""
    mib: float
    parent: int


def peaks_of(command: Sequence[str]) -> tuple[str, Peak, list[Peak]]:
    """Runs a command; returns what it printed, its own peak, and those of its descendants.

    Raises CalledProcessError.
    """
    found: dict[int, Peak] = {}
    done = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watcher = threading.Thread(target=_watch, args=(process.pid, found, done), daemon=True)
        watcher.start()
        printed, _ = process.communicate()
        done.set()
        watcher.join()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    own = found.pop(process.pid)
    return printed, own, list(found.values())


def _watch(root: int, found: dict[int, Peak], done: threading.Event) -> None:
    while not done.wait(INTERVAL_S):
        for pid in _with_descendants(root):
            status = _status(pid)
            if status is not None:
                found[pid] = status


def _with_descendants(pid: int) -> Iterable[int]:
    yield pid
    try:
        for thread in (PROC / str(pid) / "task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _with_descendants(int(child))
    except OSError:  # it ended
        return


def _status(pid: int) -> Peak | None:
    try:
        lines = (PROC / str(pid) / "status").read_text().splitlines()
        command = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    if "VmHWM" not in values:  # it is a zombie
        return None
    return Peak(command, int(values["VmHWM"].split()[0]) / 1024, int(values["PPid"]))
