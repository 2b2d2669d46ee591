"""metrics.jsonl and events.jsonl: what a run did, one JSON object a line. They are the truth; W&B mirrors them.

Every line is handed to the operating system at once, so a killed process loses none; a power cut may lose the last seconds,
for nothing is fsynced on the way of a step (a few microseconds a line, where an fsync is milliseconds). A full disk does not
stop training: lines wait in memory, bounded, and are written when there is room again. Not taken: a columnar file or SQLite,
which a half-written tail damages and no shell tool reads.

A resumed run appends with a higher `attempt` from its checkpoint's step on. What an earlier attempt did beyond that is no part
of the run, whether it was written before or, by a process that nobody could stop, after: readers leave it out (`read_metrics`).
Values that JSON has no word for are strings, "nan", "inf" and "-inf", and come back as floats.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pretrain.files import read_json_lines, storage_error, told_as_storage_error
from pretrain.metrics.facts import redact

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
ATTEMPTS_FILE = "attempts.jsonl"
"""Written by the launcher, a row each launch."""
SAMPLES_FILE = "samples.jsonl"
MAX_WAITING_LINES = 100_000
"""Lines kept while the disk is full, about 30 MB."""

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_ROW_KEYS = ("step", "attempt", "time")


class JsonLinesFile:
    """Appends objects to a .jsonl file; survives a full disk, and a predecessor that was killed within a line."""

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        """Opens the file, making it where it is missing. Raises StorageError for a full disk or a missing permission."""
        self._path = path
        self._complain = complain
        self._waiting: deque[bytes] = deque()
        self._troubled = False
        with told_as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _cut_unfinished_line(path)
            self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds one object. Never raises for a full disk: the line waits, and is tried again with the next."""
        if len(self._waiting) >= MAX_WAITING_LINES:
            del self._waiting[1]  # the first may be half written
        self._waiting.append((json.dumps(to_json(row), ensure_ascii=False, allow_nan=False) + "\n").encode())
        self._write_waiting()

    def close(self) -> None:
        """Writes what waits, makes it durable and closes the file."""
        self._write_waiting()
        try:
            os.fsync(self._handle)
        except OSError as error:
            self._tell(error)
        os.close(self._handle)

    def _write_waiting(self) -> None:
        try:
            while self._waiting:
                line = self._waiting[0]
                written = os.write(self._handle, line)
                if written < len(line):
                    self._waiting[0] = line[written:]
                else:
                    self._waiting.popleft()
            self._troubled = False
        except OSError as error:
            self._tell(error)

    def _tell(self, error: OSError) -> None:
        if not self._troubled:
            told = storage_error(error, self._path) or f"{self._path}: {error.strerror}"
            self._complain(f"{told} (training goes on; metrics wait in memory)")
        self._troubled = True


class JsonlTracker:
    """Writes the run folder's metrics.jsonl and events.jsonl."""

    def __init__(self, run_dir: Path, *, attempt: int, complain: Callable[[str], None]) -> None:
        """Opens the files. `attempt` counts the launches of the run. Raises StorageError where they cannot be written."""
        self._attempt = attempt
        self._metrics = JsonLinesFile(run_dir / METRICS_FILE, complain)
        self._events = JsonLinesFile(run_dir / EVENTS_FILE, complain)

    def start(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Notes the start and the facts of the attempt; the config itself is config.yaml of the run folder."""
        self.log_event("start", facts=dict(facts))

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a row to metrics.jsonl."""
        self._metrics.append({"step": step, **self._stamp(), **values})

    def log_event(self, kind: str, **fields: Any) -> None:
        """Adds a row to events.jsonl."""
        self._events.append({"kind": kind, **self._stamp(), **redact(fields)})

    def finish(self, summary: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """Notes the end and closes the files."""
        self.log_event("finish", exit_code=exit_code, summary=dict(summary))
        for file in (self._metrics, self._events):
            file.close()

    def _stamp(self) -> dict[str, Any]:
        return {"attempt": self._attempt, "time": round(time.time(), 3)}


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """One row a step in order of steps: what the run, as it stands, is made of. Rows of one step and attempt are one.

    An attempt's rows end where a later one begins: at the checkpoint that was the newest when that one was registered, or
    before its first row where it went back farther. Raises StorageError for a damaged file.
    """
    rows = [
        {key: from_json_number(value) for key, value in raw.items()} for raw in read_json_lines(run_dir / METRICS_FILE)
    ]
    ends = _ends(rows, read_json_lines(run_dir / ATTEMPTS_FILE))
    best: dict[int, dict[str, float]] = {}
    for row in rows:
        step, attempt = int(row["step"]), row["attempt"]
        known = best.get(step)
        if step > ends[int(attempt)] or (known is not None and known["attempt"] > attempt):
            continue
        best[step] = {**known, **row} if known is not None and known["attempt"] == attempt else row
    return [best[step] for step in sorted(best)]


def _ends(rows: Sequence[Mapping[str, float]], attempts: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Of each attempt that has rows the last step that counts. Attempts of older versions noted no checkpoint."""
    begins = {
        int(row["attempt"]): (row["checkpoint"] or {"step": 0})["step"] for row in attempts if "checkpoint" in row
    }
    for row in rows:
        attempt, before = int(row["attempt"]), max(int(row["step"]) - 1, 0)
        begins[attempt] = min(begins.get(attempt, before), before)
    ends, end = {}, math.inf
    for attempt in sorted(begins, reverse=True):
        ends[attempt] = end
        end = min(end, begins[attempt])
    return ends


def metric_names(rows: list[dict[str, float]]) -> list[str]:
    """Names of the metrics that occur in rows, in order of first appearance."""
    return list(dict.fromkeys(key for row in rows for key in row if key not in _ROW_KEYS))


def from_json_number(value: float | str) -> float:
    """A number that `to_json` wrote."""
    return _NOT_FINITE[value] if isinstance(value, str) else float(value)


def to_json(value: Any) -> Any:
    """A value as JSON can hold it: floats that are not finite become strings, tuples lists, unknown things their text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(inner) for inner in value]
    return str(value)


def _cut_unfinished_line(path: Path) -> None:
    """Removes what a killed writer left after the last line end, so that the next line starts on its own."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        position, tail = end, b""
        while position and b"\n" not in tail:
            start = max(0, position - 65536)
            file.seek(start)
            tail = file.read(position - start)
            keep, position = start + tail.rfind(b"\n") + 1, start
            if b"\n" in tail or start == 0:
                if keep < end:
                    file.truncate(keep)
                return
