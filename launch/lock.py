"""One launcher at a time for a run's folder.

The lock is the kernel's (flock) and ends with the process that holds it, however that ends: no stale lock has to be removed.
On file systems without flock it cannot be had; generations then still keep two launches' checkpoints apart.
"""

import errno
import fcntl
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pretrain.errors import ConfigError
from pretrain.files import told_as_storage_error

LOCK_NAME = "launcher.lock"


@contextmanager
def only_launcher(run_dir: Path) -> Iterator[None]:
    """Holds the run's lock. Raises ConfigError where another launcher has it, StorageError where it cannot be written."""
    path = run_dir / LOCK_NAME
    with told_as_storage_error(path):
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
                raise ConfigError(
                    f"{run_dir}: this run is being trained by {holder}; wait for it, stop it (Ctrl-C saves first), or start "
                    "another run with --set name=NEW-NAME"
                ) from None
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
        with told_as_storage_error(path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"process {os.getpid()} on {platform.node()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)
