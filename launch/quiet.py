"""Importing torch without the C++ stacks that its store prints, on stderr, where a connection breaks."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

_LEVEL = "TORCH_CPP_LOG_LEVEL"


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Within it torch is imported with its C++ log off, unless the user has set a level; ranks do not inherit it.

    When node 0's launcher dies, the store's client writes 40 lines of frames for what the launcher tells in one.
    """
    if _LEVEL in os.environ:
        yield
        return
    os.environ[_LEVEL] = "FATAL"  # torch reads it when it is imported
    try:
        yield
    finally:
        del os.environ[_LEVEL]
