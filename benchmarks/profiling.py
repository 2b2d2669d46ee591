"""Where the time of a step goes, by operator, side by side for each contestant.

torch's profiler gives each operator's own time (its children excluded), on the wall clock; of several steps the least is taken,
operator by operator, so that a disturbed moment is not counted. What no operator accounts for is Python, locks and the profiler
itself. Operators slow down a little while they are watched: the table says where time goes, not how much there is.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from benchmarks.contest import Step
from pretrain.data.micro_batch import MicroBatch

OUTSIDE = "outside of operators"


def operator_times_ms(step: Step, batch: Sequence[MicroBatch]) -> dict[str, float]:
    """Milliseconds of each operator's own time in one step, and of what lies outside of them."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        start = time.perf_counter()
        step(batch)
        wall_ms = (time.perf_counter() - start) * 1e3
    times: dict[str, float] = defaultdict(float)
    for event in recorded.key_averages():
        times[event.key] += event.self_cpu_time_total / 1e3
    times[OUTSIDE] = wall_ms - sum(times.values())
    return times


def compare(
    steps: Mapping[str, Step],
    batch: Sequence[MicroBatch],
    titles: Mapping[str, str],
    *,
    repeats: int = 4,
    rows: int = 20,
) -> Table:
    """A table of the operators that differ most between contestants, the costliest difference first."""
    found: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, step in steps.items():
            times, least = operator_times_ms(step, batch), found.setdefault(name, {})
            for operator, value in times.items():
                least[operator] = min(value, least.get(operator, value))
    operators = {operator for times in found.values() for operator in times}
    spread = {
        operator: max(times.get(operator, 0.0) for times in found.values())
        - min(times.get(operator, 0.0) for times in found.values())
        for operator in operators
    }
    table = Table(title="own time of operators in one step, ms; the largest differences first")
    table.add_column("operator")
    for name in found:
        table.add_column(titles[name], justify="right")
    table.add_row("all", *(f"{sum(times.values()):.1f}" for times in found.values()), end_section=True)
    for operator in sorted(operators, key=lambda key: -spread[key])[:rows]:
        table.add_row(operator, *(f"{times.get(operator, 0.0):.1f}" for times in found.values()))
    return table
