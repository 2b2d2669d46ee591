"""What a person at the terminal, or in the log file, sees of a run: a banner, a line an interval, a bar, a last word.

The lines are plain text in aligned columns with a heading above, so that a log file can be read and searched; they fit 80
columns, and on a narrower terminal the least important columns go. Colours and the progress bar appear on a terminal alone.
Texts from outside (names, prompts, errors) are printed as they are, never as markup.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pretrain.parallel.layout import ParallelLayout

HEADING_EVERY = 30
"""Lines between two headings."""
MAX_GROUPS_SHOWN = 4
"""Tensor groups of a stage that the layout map spells out; of more, the first and the last."""
MAX_WIDTH = 100

Values = Mapping[str, float]


@dataclass(frozen=True)
class Batch:
    """The arithmetic of a global batch."""

    sequence_length: int
    micro_batch_sequences: int
    global_batch_sequences: int
    data_ranks: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a data rank in a step."""
        return self.global_batch_sequences // (self.micro_batch_sequences * self.data_ranks)

    @property
    def tokens(self) -> int:
        """Tokens of a step over all ranks."""
        return self.global_batch_sequences * self.sequence_length

    def describe(self) -> str:
        """The factors and their product."""
        return (
            f"{self.tokens:,} tokens a step = {_count(self.data_ranks, 'data rank')} x "
            f"{_count(self.micro_batches, 'micro-batch')} x {_count(self.micro_batch_sequences, 'sequence')} x "
            f"{self.sequence_length:,} tokens"
        )


@dataclass(frozen=True)
class RunOverview:
    """What the banner tells before the first step."""

    name: str
    run_dir: Path
    layout: ParallelLayout
    zero_stage: int
    stages: Sequence[Sequence[str]]
    """Names of the layers of each pipeline stage, in order."""
    batch: Batch
    num_parameters: int
    precision: str
    device: str
    first_step: int
    steps: int
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further lines, label to text: the data, W&B, the checkpoint that the run goes on from."""


@dataclass(frozen=True)
class _Column:
    title: str
    width: int
    text: Callable[[Values], str]
    rank: int
    """Importance: on a narrow terminal the columns of the highest rank go first."""


class RunConsole:
    """Prints for rank 0. Give it a rich Console to choose where; the clock is for the remaining time."""

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(highlight=False, markup=False, emoji=False)
        self._clock = clock
        self._total = 0
        self._first: tuple[int, float] = (0, 0.0)
        self._columns: list[_Column] = []
        self._lines = 0
        self._progress: Progress | None = None
        self._logged: Values = {}

    def start(self, run: RunOverview) -> None:
        """The banner, and on a terminal the progress bar below all further lines."""
        self._console.print(Group(Rule(style="dim"), *_banner(run), Rule(style="dim")), width=self._width)
        self._total = run.steps
        self._first = (run.first_step, self._clock())
        self._columns = _fitting(_columns(run.steps), self._width)
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn(" {task.description}"),
                BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
                TaskProgressColumn(),
                console=self._console,
                transient=True,
                refresh_per_second=4,
                expand=True,
            )
            self._progress.add_task(f"step {run.first_step:,}", total=run.steps, completed=run.first_step)
            self._progress.start()

    def step(self, step: int, values: Values) -> None:
        """A line for a logging interval, by names such as `train/loss`; absent values show as a dash."""
        self._logged = values
        if self._lines % HEADING_EVERY == 0:
            heading = " ".join(column.title.rjust(column.width) for column in self._columns)
            self._line(Text(heading, style="dim"))
        self._lines += 1
        shown = {**values, "step": step, "total": self._total, "eta_s": self._remaining_s(step)}
        self._line(Text(" ".join(column.text(shown).rjust(column.width) for column in self._columns)))

    def tick(self, step: int) -> None:
        """Moves the progress bar after any step; no line."""
        if self._progress is not None:
            loss = self._logged.get("train/loss")
            parts = [f"step {step:,}/{self._total:,}"]
            parts += [f"loss {loss:.3f}"] if loss is not None else []
            rate = self._logged.get("perf/tokens_per_second")
            parts += [f"{short(rate)} tok/s"] if rate is not None else []
            parts.append(f"{duration(self._remaining_s(step))} left")
            self._progress.update(self._progress.task_ids[0], completed=step, description="  ".join(parts))

    def evaluation(self, step: int, values: Values) -> None:
        """A line for a validation, by names such as `eval/loss`."""
        parts = [(name.removeprefix("eval/").replace("_", " "), value) for name, value in values.items()]
        told = "  ".join(f"{name} {value:,.{1 if abs(value) >= 100 else 4}f}" for name, value in parts)
        self._line(Text.assemble((f" step {step:,} validation  ", "bold"), told))

    def message(self, text: str) -> None:
        """A line of its own: a checkpoint, a warning of the trackers."""
        self._line(Text(f" {text}"))

    def close(self) -> None:
        """Removes the progress bar; safe to call twice."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def end(self, cause: str, facts: Mapping[str, str], next_commands: Sequence[str] = ()) -> None:
        """The last word: why the run ended, what came out, and what to run next."""
        self.close()
        rows = [_row(label, text) for label, text in {"end": cause, **facts}.items()]
        rows += [_row("next" if index == 0 else "", command) for index, command in enumerate(next_commands)]
        self._console.print(Group(Rule(style="dim"), *rows, Rule(style="dim")), width=self._width)

    @property
    def _width(self) -> int:
        return min(self._console.width, MAX_WIDTH)

    def _remaining_s(self, step: int) -> float:
        first, began = self._first
        done = step - first
        return (self._clock() - began) / done * (self._total - step) if done > 0 else math.nan

    def _line(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)


def _banner(run: RunOverview) -> list[RenderableType]:
    """The rows of the banner, label to the left."""
    layout, batch = run.layout, run.batch
    steps = f"{run.first_step:,} to {run.steps:,}, {short(batch.tokens * run.steps)} tokens in all"
    return [
        _row("run", f"{run.name}, in {run.run_dir}"),
        _row("model", f"{run.num_parameters:,} parameters, {run.precision} on {run.device}"),
        _row("layout", f"{layout.describe()}, {_count(layout.world_size, 'rank')}, ZeRO-{run.zero_stage}"),
        Padding(layout_map(layout, run.stages), (0, 0, 0, 10)),
        _row("batch", batch.describe()),
        _row("steps", steps),
        *(_row(label, text) for label, text in run.notes.items()),
    ]


def layout_map(layout: ParallelLayout, stages: Sequence[Sequence[str]]) -> Table:
    """Which ranks hold which stage: a bracket is a tensor group, one for each data coordinate."""
    assert len(stages) == layout.pp, (len(stages), layout)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True)
    table.add_column()
    for pipe, layers in enumerate(stages):
        groups = [_ranks(layout, pipe, data) for data in range(layout.data_size)]
        if len(groups) > MAX_GROUPS_SHOWN:
            groups = [*groups[: MAX_GROUPS_SHOWN - 2], "...", groups[-1]]
        table.add_row(f"stage {pipe}", Text(" ".join(groups)), Text(describe_layers(layers)))
    return table


def _ranks(layout: ParallelLayout, pipe: int, data: int) -> str:
    first, last = layout.rank(pipe, data, 0), layout.rank(pipe, data, layout.tp - 1)
    spelled = [str(rank) for rank in range(first, last + 1)]
    return f"[{' '.join(spelled) if len(spelled) <= 2 else f'{first}-{last}'}]"


def describe_layers(names: Sequence[str]) -> str:
    """Layer names with runs of numbers drawn together: `embedding, layers 0-3, head`."""
    parts = [
        (match[1], int(match[2])) if (match := re.fullmatch(r"(.+)\.(\d+)", name)) else (name, -1) for name in names
    ]
    told = []
    for (stem, _), run in groupby(parts, key=lambda part: (part[0], part[1] < 0)):
        numbers = [number for _, number in run]
        if numbers[0] < 0:
            told.append(stem)
        else:
            told.append(f"{stem} {numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else f"{stem} {numbers[0]}")
    return ", ".join(told)


def _row(label: str, text: str) -> Table:
    """A label and its text, which wraps in its own column."""
    row = Table.grid(padding=(0, 1))
    row.add_column(width=9, no_wrap=True, style="bold")
    row.add_column(overflow="fold")
    row.add_row(Text(f" {label}"), Text(text))
    return row


def _columns(total: int) -> list[_Column]:
    return [
        _Column("step", max(9, 2 * len(str(total)) + 1), lambda v: f"{v['step']:.0f}/{v['total']:.0f}", 0),
        _Column("loss", 7, lambda v: _fixed(v.get("train/loss"), 4), 0),
        _Column("grad", 7, lambda v: _fixed(v.get("train/grad_norm"), 3), 1),
        _Column("lr", 8, lambda v: _scientific(v.get("train/lr")), 3),
        _Column("tok/s", 6, lambda v: short(v.get("perf/tokens_per_second")), 1),
        _Column("MFU", 6, lambda v: _percent(v.get("perf/mfu")), 4),
        _Column("memory", 8, lambda v: _gib(v.get("memory/device_peak_gib", v.get("memory/host_rss_gib"))), 5),
        _Column("wait", 6, lambda v: _percent(v.get("data/wait_fraction")), 6),
        _Column("ETA", 7, lambda v: duration(v["eta_s"]), 2),
    ]


def _fitting(columns: list[_Column], width: int) -> list[_Column]:
    """The columns that fit a width, the most important ones."""
    left = list(columns)
    while len(left) > 2 and sum(column.width + 1 for column in left) > width:
        left.remove(max(left, key=lambda column: column.rank))
    return left


def plural(number: int, noun: str) -> str:
    """The noun as the number asks for it."""
    return noun if number == 1 else f"{noun}es" if noun.endswith("ch") else f"{noun}s"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {plural(number, noun)}"


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.2e}"


def _percent(share: float | None) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.1f}%"


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}GiB"


def short(value: float | None) -> str:
    """A number in at most six characters: `950`, `12.3k`, `4.56M`."""
    if value is None or not math.isfinite(value):
        return "-"
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}" if abs(value) < 999.5 * limit else f"{value / limit:.0f}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """A span of time in at most seven characters: `45s`, `3m12s`, `5h07m`, `12d03h`; a dash where it is not known."""
    if not math.isfinite(seconds):
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 48 * 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
