"""One launcher at a time for a run's folder, and one run for a cache of shards.

The lock is the kernel's (flock) and ends with the process that holds it, however that ends: no stale lock has to be removed.
Where it does not reach (a file system without flock, a machine that was cut off) `pretrain.checkpoint.fence` keeps two launches'
checkpoints apart.

Slurm may start a job again while a machine that it lost still runs the launcher of the earlier start, and the file server keeps
that one's lock. The later start then puts a lock file of its own in the place of the other's.
"""

import errno
import fcntl
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.files import told_as_storage_error
from pretrain.metrics.facts import slurm_start

LOCK_NAME = "launcher.lock"
WAIT_UNDER_SLURM_S = 60.0
"""How long a job waits for another launcher of its run, which may be dying: a job that was preempted saves at its end."""

_POLL_S = 0.5
_SLURM = re.compile(r", Slurm job (\d+), restart (\d+)$")


@contextmanager
def only_launcher(
    run_dir: Path, start: dict[str, int] | None = None, wait_s: float = WAIT_UNDER_SLURM_S
) -> Iterator[None]:
    """Holds the run's lock.

    Args:
        run_dir: of the run.
        start: of this Slurm job, by default the environment's; with one, a lock that is held is waited for, and that of an
            earlier start of the same job taken over.
        wait_s: for how long.

    Raises ConfigError where another launcher has it, StorageError where it cannot be written.
    """
    start, path = start or slurm_start(os.environ), run_dir / LOCK_NAME
    handle, end = _taken(path), time.monotonic() + (wait_s if start else 0.0)
    if handle is None and start is not None and not takes_over(start, _holder(path)):
        _tell(f"{run_dir}: {_holder(path)} has this run; waiting up to {wait_s:.0f} s for its end")
    while handle is None:
        if takes_over(start, holder := _holder(path)):
            _tell(
                f"{run_dir}: taken over from {holder}, an earlier start of this job: nothing that it saves now counts"
            )
            handle = _replaced(path)
        elif time.monotonic() >= end:
            raise ConfigError(
                f"{run_dir}: this run is being trained by {holder}; wait for it, stop it (Ctrl-C saves first), or start "
                "another run with --set name=NEW-NAME"
            )
        else:
            time.sleep(_POLL_S)
            handle = _taken(path)
    with _named(handle, path, start):
        yield


def takes_over(start: dict[str, int] | None, holder: str) -> bool:
    """Whether a start of a Slurm job may take the run from the launcher of that name: an earlier start of the same job."""
    held = _SLURM.search(holder)
    return start is not None and held is not None and int(held[1]) == start["job"] and int(held[2]) < start["restart"]


def launcher_name(process: int, host: str, start: dict[str, int] | None) -> str:
    """How a launcher is named in its lock and to the users of another."""
    job = f", Slurm job {start['job']}, restart {start['restart']}" if start else ""
    return f"process {process} on {host}{job}"


@contextmanager
def only_user_of_cache(folder: Path) -> Iterator[None]:
    """Holds a cache of shards. Raises ConfigError where another run has it, StorageError where it cannot be written."""
    path = folder / LOCK_NAME
    handle = _taken(path)
    if handle is None:
        raise ConfigError(
            f"data.cache.dir: {folder} serves the run of {_holder(path)}, and two would take each other's shards away; where "
            "that is this run, wait for it or stop it, else name another folder in data.cache.dir"
        )
    with _named(handle, path, slurm_start(os.environ)):
        yield


def _taken(path: Path) -> int | None:
    """The open lock file, locked where the file system can; None where another process has it."""
    while True:
        with told_as_storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                return handle
            os.close(handle)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return None
            raise
        if _is_at(handle, path):
            return handle
        os.close(handle)  # it was replaced meanwhile: the lock of a file without a name holds nobody back


def _replaced(path: Path) -> int:
    """A new lock file, locked, in the place of one that another process holds."""
    with told_as_storage_error(path):
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.fchmod(handle, path.stat().st_mode & 0o777)
        Path(temporary).replace(path)
    return handle


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _named(handle: int, path: Path, start: dict[str, int] | None) -> Iterator[None]:
    """Writes who holds the lock; closes it in the end."""
    try:
        with told_as_storage_error(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{launcher_name(os.getpid(), platform.node(), start)}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    """The name of the process that holds a lock."""
    try:
        return path.read_bytes()[:200].decode(errors="replace").strip() or "another process"
    except FileNotFoundError:
        return "another process"


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
