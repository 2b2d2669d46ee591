"""Interleaved timing of several trainers on the same batches, with statistics that stand noise.

Each round gives every contestant one step on the same batch, in an order that rotates, so that a slow moment of the machine or
the warmth of a cache favours none. What is compared are ratios within a round, by their median, with a bootstrap interval:
a drift of the clock over minutes cancels in a ratio and does not in a difference of means.

Two clocks are read: wall time, and the CPU time of the process, which a busy machine disturbs less (with one thread: with
more, threads that wait for each other spin and are counted).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.ratio import Ratio
from pretrain.data.micro_batch import MicroBatch

Clock = Literal["wall", "cpu"]
READ: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

Step = Callable[[Sequence[MicroBatch]], float]
"""Takes a step on the micro-batches and returns the loss."""


@dataclass(frozen=True)
class Timings:
    """Seconds on both clocks and losses of each contestant, by round."""

    wall_s: dict[str, list[float]]
    cpu_s: dict[str, list[float]]
    losses: dict[str, list[float]]

    def seconds(self, clock: Clock) -> dict[str, list[float]]:
        """Those of one clock."""
        return {"wall": self.wall_s, "cpu": self.cpu_s}[clock]

    def ratio(self, name: str, base: str, clock: Clock) -> Ratio:
        """Time of one contestant over that of another."""
        seconds = self.seconds(clock)
        return Ratio.of([ours / theirs for ours, theirs in zip(seconds[name], seconds[base], strict=True)])


def interleave(
    contestants: Mapping[str, Step],
    batches: Sequence[Sequence[MicroBatch]],
    *,
    warmup: int,
    finish: Callable[[], None] = lambda: None,
) -> Timings:
    """One round a batch; the first `warmup` rounds are run and not timed (their losses are kept).

    `finish` waits for work that a step has only queued. Raises ValueError where no round is left to time.
    """
    if len(batches) <= warmup:
        raise ValueError(f"{len(batches)} rounds with {warmup} of warm-up leave none to time")
    names = list(contestants)
    timings = Timings({name: [] for name in names}, {name: [] for name in names}, {name: [] for name in names})
    for index, batch in enumerate(batches):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            wall, cpu = READ["wall"](), READ["cpu"]()
            timings.losses[name].append(contestants[name](batch))
            finish()
            if index >= warmup:
                timings.wall_s[name].append(READ["wall"]() - wall)
                timings.cpu_s[name].append(READ["cpu"]() - cpu)
    return timings
