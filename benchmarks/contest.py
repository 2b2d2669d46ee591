"""Interleaved timing of several trainers on the same batches, with statistics that stand noise.

Each round gives every contestant one step on the same batch, in an order that rotates, so that a slow moment of the machine or
the warmth of a cache favours none. What is compared are ratios within a round, by their median, with a bootstrap interval:
a drift of the clock over minutes cancels in a ratio and does not in a difference of means.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pretrain.data.micro_batch import MicroBatch

Step = Callable[[Sequence[MicroBatch]], float]
"""Takes a step on the micro-batches and returns the loss."""


@dataclass(frozen=True)
class Timings:
    """Seconds and losses of each contestant, by round."""

    seconds: dict[str, list[float]]
    losses: dict[str, list[float]]

    def median_s(self, name: str) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> "Ratio":
        """Time of one contestant over that of another."""
        pairs = zip(self.seconds[name], self.seconds[base], strict=True)
        return Ratio.of([ours / theirs for ours, theirs in pairs])


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(ratios: Sequence[float], resamples: int = 2000) -> "Ratio":
        """From the ratio of each round; the resampling is seeded."""
        draw = random.Random(0)
        medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(resamples))
        return Ratio(statistics.median(ratios), medians[int(0.025 * resamples)], medians[int(0.975 * resamples) - 1])


def interleave(contestants: Mapping[str, Step], batches: Sequence[Sequence[MicroBatch]], *, warmup: int) -> Timings:
    """One round a batch; the first `warmup` rounds are run and not timed (their losses are kept).

    Raises ValueError where no round is left to time.
    """
    if len(batches) <= warmup:
        raise ValueError(f"{len(batches)} rounds with {warmup} of warm-up leave none to time")
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {name: [] for name in names}
    for index, batch in enumerate(batches):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            losses[name].append(contestants[name](batch))
            if index >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds, losses)
