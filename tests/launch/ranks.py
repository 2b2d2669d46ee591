"""A rank for tests of the launcher: started as a real one is, it does what the environment's FAKE_RANK says, without torch.

    ok | raise:CLASS | one:CLASS | crash | kill | kill-and-notice | exit:CODE | loop | slow-start | child
    late:CLASS | kill-until:GENERATION | save-and-kill-until:GENERATION

`loop` is a training loop: it runs until a signal asks it to stop, and writes the steps that it finished. In the modes in which
rank 1 (or FAKE_VICTIM) fails, the others are such loops; with FAKE_PEER=deaf ones that no signal but SIGKILL ends. The last two
modes kill that rank in every generation before the one that is named, with a new checkpoint or without; later they are `ok`.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pretrain import errors
from pretrain.checkpoint.format import CheckpointRef
from pretrain.guard.fault_file import run_rank
from pretrain.guard.parent import die_with_parent
from pretrain.guard.preemption import StopReason, StopSignals

PATIENCE_S = 60.0
"""How long a rank of a broken test lives."""


def work(rank: int, run_dir: Path, generation: int, mode: str) -> None:
    kind, _, argument = mode.partition(":")
    victim = int(os.environ.get("FAKE_VICTIM", "1"))
    if kind.endswith("kill-until"):
        if kind.startswith("save") and rank == victim and generation < int(argument):
            checkpoint = CheckpointRef.at(run_dir, generation, generation)
            checkpoint.path.mkdir(parents=True)
            checkpoint.marker.write_text("only the launcher looks at it")
        kind = "ok" if generation >= int(argument) else "kill"
    if kind == "raise" or (kind == "one" and rank == 1):
        raise getattr(errors, argument)(f"the message of rank {rank}: data.dir=x must be y; use z")
    if kind == "late" and rank == 0:
        raise RuntimeError("an assumption does not hold")
    if kind == "late":
        time.sleep(0.5)
        raise getattr(errors, argument)(f"the message of rank {rank}: data.dir=x must be y; use z")
    if kind == "crash" and rank == 1:
        raise ValueError("an assumption\ndoes not hold")
    if kind in ("kill", "kill-and-notice") and rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "kill-and-notice":
        time.sleep(0.3)
        raise RuntimeError("connection closed by peer")
    if kind == "exit" and rank == 1:
        os._exit(int(argument))
    if kind == "ok":
        print(f"rank {rank} speaks, a terminal: {sys.stdout.isatty()}")
        return
    if kind == "slow-start":
        (run_dir / f"rank-{rank}.started").touch()
        time.sleep(1.0)
    if kind == "child" and rank == 0:
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({PATIENCE_S})"])
        (run_dir / "child.started").write_text(str(child.pid))
    stop = StopSignals() if os.environ.get("FAKE_PEER") == "deaf" else StopSignals.install()
    (run_dir / f"rank-{rank}.started").write_text(str(os.getpid()))
    step, end = 0, time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        time.sleep(0.02)
        step += 1
        if stop.reason is not StopReason.NONE:
            (run_dir / f"rank-{rank}.saved").write_text(str(step))
            raise stop.reason.error(step, 100)


def main() -> int:
    die_with_parent()
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--generation", type=int, required=True)
    chosen = parser.parse_args()
    rank = int(os.environ["RANK"])
    return run_rank(
        lambda: work(rank, chosen.run, chosen.generation, os.environ["FAKE_RANK"]), chosen.run, chosen.generation, rank
    )


if __name__ == "__main__":
    sys.exit(main())
