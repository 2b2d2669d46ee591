"""Cost of a training step: the project's engine, a plain torch loop on the same layers, and the same loop on a minimal GPT.

    python benchmarks/train_step.py [--precision fp32 bf16] [--rounds 15] [--profile]

Two questions: what does the engine (DeepSpeed ZeRO-1, guards, metrics) add to a plain loop, and what do the project's layers
add to a GPT without any of their generality? See benchmarks/README.md.

This file only prepares the process: the allocator reads its thresholds when a process starts, and a step that maps and unmaps
its 100 MB buffers again and again measures page faults. So it starts itself once more with them, the same for everyone
who is measured; the measuring itself is in measure.py.
"""

import argparse
import os
import sys
from pathlib import Path

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
"""glibc's malloc keeps what is freed: the values that the launcher gives to ranks on a CPU."""
QUIET_PROFILER = {"KINETO_LOG_LEVEL": "99"}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds: each contestant takes one step a round")
    parser.add_argument("--warmup", type=int, default=3, help="rounds before them")
    names = ("engine", "layers", "minimal")
    parser.add_argument("--contestants", nargs="+", choices=names, default=list(names))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a busy machine, one thread")
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--d-model", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--num-heads", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--batch-sequences", type=int, default=8, help="sequences of a step: 8 x 512 = 4,096 tokens")
    parser.add_argument("--micro-batch-sequences", type=int, default=4)
    parser.add_argument("--profile", action="store_true", help="afterwards, where the time of a step goes, by operator")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results file"
    )
    return parser.parse_args(arguments)


def main() -> None:
    """Starts the process again with the allocator's thresholds, then measures."""
    arguments = parse()
    paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        environment = {**os.environ, **ALLOCATOR, **QUIET_PROFILER, "PYTHONPATH": os.pathsep.join(paths)}
        os.execve(sys.executable, [sys.executable, __file__, *sys.argv[1:]], environment)
    from benchmarks.measure import measure

    measure(arguments)


if __name__ == "__main__":
    main()
