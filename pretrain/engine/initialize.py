"""`deepspeed.initialize` without its noise and its slowest import.

DeepSpeed prints its layer tables and settings with bare `print`. And to learn whether an optimizer is Muon it imports its
Muon kernels, whose decorators load the whole of torch's compiler: 2.3 CPU-seconds in every rank at every start.
"""

import contextlib
import io
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import deepspeed

_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine, made in an initialised world from `deepspeed.initialize`'s arguments."""
    with quiet(), _stand_in_for_muon():
        return deepspeed.initialize(dist_init_required=False, **arguments)[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows standard output and Python warnings of the block; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _stand_in_for_muon() -> Iterator[None]:
    """Within the block the Muon module holds nothing but a class that no optimizer is an instance of."""
    if _MUON in sys.modules:
        yield
        return
    module = types.ModuleType(_MUON)
    vars(module)["MuonWithAuxAdam"] = type("MuonWithAuxAdam", (), {})
    sys.modules[_MUON] = module
    try:
        yield
    finally:
        del sys.modules[_MUON]
