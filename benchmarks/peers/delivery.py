"""The timed loop over delivered batches, the same for everyone: endless passes, warm, until enough CPU time is spent."""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tree_clock import timed


def parse(description: str | None) -> argparse.Namespace:
    """Command line of a reader."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--stream", type=Path, required=True, help="folder with stream.tokens (uint16) and ends.npy")
    parser.add_argument("--out", type=Path, required=True, help="folder of the reader's own format")
    parser.add_argument("--make", action="store_true", help="only write that folder")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64, help="sequences")
    parser.add_argument("--cpu-s", type=float, default=2.0, help="CPU time to spend")
    parser.add_argument("--workers", type=int, default=0)
    return parser.parse_args()


def deliver(
    batches: Iterator[Any], pass_batches: int, parts: Callable[[Any], tuple[Any, Any]], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Takes one pass untimed, then further batches for `cpu_s`.

    Args:
        batches: endless, pass after pass.
        pass_batches: of one pass over the data.
        parts: takes inputs and labels, (B, S) each, out of what was delivered; called for the check alone.
        arguments: of the command.
    """
    _check(*parts(next(batches)), shape := (arguments.batch, arguments.sequence_length))
    for _ in range(pass_batches):  # warm: pages are in memory, and what is built at first use is built
        next(batches)
    report: dict[str, Any] = {"batches": 0}
    patience = time.perf_counter() + (2 if arguments.workers else 20) * arguments.cpu_s
    with timed(report):
        stop = time.process_time() + arguments.cpu_s
        while time.process_time() < stop and time.perf_counter() < patience:
            next(batches)
            report["batches"] += 1
    report["tokens"] = report["batches"] * shape[0] * shape[1]
    return report


def endless(passes: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """The batches of pass after pass."""
    while True:
        yield from passes()


def _check(inputs: Any, labels: Any, shape: tuple[int, int]) -> None:
    if tuple(inputs.shape) != shape or tuple(labels.shape) != shape or inputs.dtype.is_floating_point:
        raise SystemExit(f"delivered {tuple(inputs.shape)} and {tuple(labels.shape)}, not {shape}")
    if not bool((inputs[:, 1:] == labels[:, :-1]).all()):
        raise SystemExit("labels are not the inputs moved by one")
