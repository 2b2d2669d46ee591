"""One launcher at a time for a run's folder, and one run for a cache of shards.

The lock is the kernel's (flock) and ends with the process that holds it, however that ends: no stale lock has to be removed.
On file systems without flock it cannot be had; generations then still keep two launches' checkpoints apart.
"""

import errno
import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.files import told_as_storage_error

LOCK_NAME = "launcher.lock"


@contextmanager
def only_launcher(run_dir: Path) -> Iterator[None]:
    """Holds the run's lock. Raises ConfigError where another launcher has it, StorageError where it cannot be written."""

    def told(holder: str) -> str:
        return (
            f"{run_dir}: this run is being trained by {holder}; wait for it, stop it (Ctrl-C saves first), or start "
            "another run with --set name=NEW-NAME"
        )

    with _held(run_dir / LOCK_NAME, told):
        yield


@contextmanager
def only_user_of_cache(folder: Path) -> Iterator[None]:
    """Holds a cache of shards. Raises ConfigError where another run has it, StorageError where it cannot be written."""

    def told(holder: str) -> str:
        return (
            f"data.cache.dir: {folder} serves the run of {holder}, and two would take each other's shards away; where that is "
            "this run, wait for it or stop it, else name another folder in data.cache.dir"
        )

    with _held(folder / LOCK_NAME, told):
        yield


@contextmanager
def _held(path: Path, told: Callable[[str], str]) -> Iterator[None]:
    """Holds the lock of a file; `told` says what is wrong where another process, by its name, has it."""
    with told_as_storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    told(os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process")
                ) from None
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        with told_as_storage_error(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
