"""A ratio of two contestants over interleaved rounds: its median and how sure that is."""

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


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
