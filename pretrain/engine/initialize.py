"""`deepspeed.initialize` without its noise and its slowest import.

DeepSpeed prints its layer tables and settings with bare `print`. And to learn whether an optimizer is Muon, when it is made and
in each step, it imports its Muon kernels, whose decorators load the whole of torch's compiler: 2.3 CPU-seconds in every rank at
every start.
"""

import contextlib
import io
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

import deepspeed


def _no_muon(*_: object, **__: object) -> None:
    raise NotImplementedError("DeepSpeed's Muon is not served")


_ROOM = "deepspeed.runtime.zero.muon"
_MUON = {
    f"{_ROOM}.muon_optimizer": {"MuonWithAuxAdam": type("MuonWithAuxAdam", (), {})},
    f"{_ROOM}.original_muon": {"muon_update": _no_muon},
}


def initialize(**arguments: Any) -> Any:
    """DeepSpeed's engine, made in an initialised world from `deepspeed.initialize`'s arguments."""
    _stand_in_for_muon()
    with quiet():
        return deepspeed.initialize(dist_init_required=False, **arguments)[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Swallows standard output and Python warnings of the block; errors still raise."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _stand_in_for_muon() -> None:
    """From now on the Muon modules hold a class that no optimizer is an instance of, and a function that nobody calls."""
    for name, content in _MUON.items():
        if name not in sys.modules:
            module = types.ModuleType(name)
            vars(module).update(content)
            sys.modules[name] = module
