"""CPU-seconds of this process and of all that descend from it, read from /proc; standard library alone, for any environment.

A process that ended and was waited for counts with its parent (cutime, cstime). One whose parent never waits for it is lost, so
contestants read the clock while their workers are alive. Resolution is a clock tick, 10 ms.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


def tree_cpu_s() -> float:
    """User and system time of this process and its descendants, in seconds."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        # After the name: state, parent, ...; utime, stime, cutime, cstime are the 14th to 17th of all (proc_pid_stat(5)).
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        ticks[int(entry.name)] = sum(map(int, fields[11:15]))
    total, todo = 0, [os.getpid()]
    while todo:
        process = todo.pop()
        total += ticks.get(process, 0)
        todo += children.get(process, ())
    return total / TICKS


@contextmanager
def timed(report: dict[str, Any]) -> Iterator[None]:
    """Writes the work's `work_cpu_s` and `wall_s` into a report, and the `command_cpu_s` up to the work's end."""
    before, started = tree_cpu_s(), time.perf_counter()
    yield
    after = tree_cpu_s()
    report["wall_s"] = time.perf_counter() - started
    report["work_cpu_s"], report["command_cpu_s"] = after - before, after


def tell(report: dict[str, Any]) -> None:
    """Prints a report as the last line of the output, where the contest reads it."""
    print(flush=True)
    print(json.dumps(report), flush=True)
