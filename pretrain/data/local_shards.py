"""Shards that come and go: what a rank and the agent of its node tell each other, by files alone.

A cache folder looks like a data folder whose shards are not all there. The agent (`launch.shard_agent`) brings them in the order
in which the plan asks for them, and takes away what is not needed soon. Beside the shards lie

    .agent           touched every second while the agent lives; holds what it has to tell
    .positions/PID   the step that a rank's feed has reached
    .wanted/NAME     a shard that a rank waits for now
    .failed/NAME     why a shard cannot be had

A rank opens no connection and imports no client of a store. A shard that is deleted while it is mapped stays readable: the file
system keeps it until the map is closed.
"""

import os
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, unquote

from pretrain.errors import DataError

AGENT_NAME, POSITIONS_NAME, WANTED_NAME, FAILED_NAME = ".agent", ".positions", ".wanted", ".failed"
AGENT_SILENCE_S = 60.0
"""An agent that is silent for so long is gone."""
_LOOK_S = 0.02


def is_cached(folder: Path) -> bool:
    """Whether an agent serves a folder."""
    return (folder / AGENT_NAME).exists()


def mark_of(folder: Path, kind: str, file: str) -> Path:
    """The file that says something of a shard."""
    return folder / kind / quote(file, safe="")


def file_of(mark: Path) -> str:
    """The shard that a mark is about."""
    return unquote(mark.name)


def wait_for_shard(folder: Path, file: str) -> None:
    """Returns when a shard of a cache folder is there.

    Raises DataError where the agent cannot bring it, or is gone.
    """
    path, wanted, failed = folder / file, mark_of(folder, WANTED_NAME, file), mark_of(folder, FAILED_NAME, file)
    if path.exists():
        return
    wanted.parent.mkdir(exist_ok=True)
    failed.unlink(missing_ok=True)  # of an attempt ahead of time; it is tried again
    try:
        while not path.exists():
            wanted.touch()  # anew each time: an agent that begins clears the marks of the one before it
            if failed.exists():
                raise DataError(f"{file} cannot be had from {folder}: {failed.read_text(encoding='utf-8')}")
            silence = _age_s(folder / AGENT_NAME)
            if silence > AGENT_SILENCE_S:
                raise DataError(
                    f"{folder}: the shard agent of this node has not been heard of for {silence:.0f} s, and {file} is not "
                    "there; start the run again"
                )
            time.sleep(_LOOK_S)
    finally:
        wanted.unlink(missing_ok=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def forget_last_run(folder: Path) -> None:
    """Removes what the agent and the ranks of an earlier run said; nobody uses the folder meanwhile."""
    (folder / AGENT_NAME).unlink(missing_ok=True)
    for kind in (POSITIONS_NAME, WANTED_NAME, FAILED_NAME):
        for mark in (folder / kind).glob("*"):
            mark.unlink(missing_ok=True)


class Position:
    """The step that this process's feed has reached, for the agent to read."""

    def __init__(self, folder: Path) -> None:
        """Of a cache folder; of any other one nothing is written."""
        self._handle = -1
        if is_cached(folder):
            place = folder / POSITIONS_NAME
            place.mkdir(exist_ok=True)
            self._path = place / str(os.getpid())
            self._handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)

    def tell(self, step: int) -> None:
        """The feed stands at this step."""
        if self._handle >= 0:
            os.pwrite(self._handle, f"{step:020d}".encode(), 0)

    def close(self) -> None:
        """The feed has ended."""
        if self._handle >= 0:
            os.close(self._handle)
            self._path.unlink(missing_ok=True)
            self._handle = -1


def positions(folder: Path) -> list[int]:
    """Steps of the feeds that live on this node."""
    found = []
    for path in (folder / POSITIONS_NAME).glob("*"):
        if not Path("/proc", path.name).exists():
            path.unlink(missing_ok=True)
            continue
        with suppress(ValueError, FileNotFoundError):
            found.append(int(path.read_text()))
    return found
