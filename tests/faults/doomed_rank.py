"""A real rank in which one is killed (SIGKILL) at a chosen call of a Python function within a chosen step, or within its save.

DOOM=RANK:PHASE:STEP:CALLS    PHASE is step or save; in the run's first generation alone
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pretrain import train
from pretrain.guard.fault_file import leave


def doom(phase: str, step: int, calls: int, note: Path) -> None:
    """Lets this process kill itself at the n-th call from the beginning of the phase on."""
    owner, name = {"step": (train.Training, "_step"), "save": (train, "save")}[phase]
    original: Callable[..., Any] = getattr(owner, name)
    begun = 0

    def armed(*arguments: Any, **named: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == step:
            sys.setprofile(count)
        return original(*arguments, **named)

    left = calls

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal left
        left -= event == "call"
        if left < 0:
            note.write_text(" ".join(frame.name for frame in traceback.extract_stack()))
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, armed)


if __name__ == "__main__":
    rank, phase, step, calls = os.environ["DOOM"].split(":")
    run_dir, generation = Path(sys.argv[sys.argv.index("--run") + 1]), sys.argv[sys.argv.index("--generation") + 1]
    if os.environ["RANK"] == rank and generation == "1":
        doom(phase, int(step), int(calls), run_dir / "died-in")
    leave(train.main())
