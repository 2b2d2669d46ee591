"""`deepspeed.initialize` without its noise and its slowest import.

DeepSpeed prints its layer tables and settings with bare `print`. And to learn whether an optimizer is Muon it imports its
Muon kernels, whose decorators load the whole of torch's compiler: 2.3 CPU-seconds in every rank at every start.
"""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import deepspeed

_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine, made in an initialised world from `deepspeed.initialize`'s arguments."""
    with quiet(), _absent(_MUON):
        return deepspeed.initialize(dist_init_required=False, **arguments)[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows standard output and Python warnings of the block; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _absent(module: str) -> Iterator[None]:
    """Importing the module raises ImportError within the block, which DeepSpeed takes for `not installed`."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
