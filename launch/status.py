"""`pretrain status`: all runs below a folder as a table, drawn again and again on a terminal, once elsewhere.

Runs that need someone come first: those under way, then those that wait, failed or fell silent, and last those that are done. On
a narrow terminal the least important columns go, on a short one the last rows. Texts of events are cut; `--json` has them whole.
"""

import json
import math
import re
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from launch.job_states import Queue, ask_queue
from launch.run_facts import find_runs, read_facts
from launch.run_state import RunRow, jobs_of, row_of
from pretrain.errors import ConfigError
from pretrain.files import storage_error
from pretrain.metrics.console import duration, plural, short
from pretrain.metrics.jsonl import to_json

MAX_RUN_WIDTH = 40
MIN_EVENT_WIDTH = 24
"""Cells; with less room another column goes first."""
MAX_EVENT_WIDTH = 72
MAX_NOTES = 5
UNLIMITED = 1 << 20

_ORDER = (
    "running",
    "training",
    "starting",
    "completing",
    "pending",
    "stale",
    "failed",
    "stopped",
    "not started",
    "done",
)
_COLOURS = {"running": "green", "training": "green", "starting": "cyan", "pending": "yellow"} | {
    "stale": "magenta",
    "failed": "red",
    "stopped": "yellow",
    "done": "dim",
}


@dataclass(frozen=True)
class View:
    """A look at the runs of a folder."""

    rows: tuple[RunRow, ...]
    """In the order in which they are shown."""
    notes: tuple[str, ...]
    """What is not a run, what could not be read, whether Slurm answered."""


@dataclass(frozen=True)
class _Column:
    title: str
    text: Callable[[RunRow], str]
    rank: int
    """Importance: 0 is always shown, the highest goes first where there is no room."""
    left: bool = False


def status(arguments: Namespace) -> None:
    """`pretrain status`. Ctrl-C is the way to end it. Raises ConfigError for a folder that is not there, StorageError."""
    folder = Path(arguments.folder).expanduser()
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if arguments.json:
        print(json.dumps(as_json(look(folder, time.time()))))
    elif arguments.once or not console.is_terminal:
        width = console.width if console.is_terminal else UNLIMITED
        for line in table(look(folder, time.time()), width=width):
            console.print(line)
    else:
        with suppress(KeyboardInterrupt):
            _watch(folder, console, arguments.interval)


def _watch(folder: Path, console: Console, interval_s: float) -> None:
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            lines = table(look(folder, time.time()), width=console.width, height=console.height - 1)
            live.update(Group(*lines, Text(time.strftime("%H:%M:%S, Ctrl-C ends this"), style="dim")), refresh=True)
            time.sleep(interval_s)


def look(folder: Path, now: float, ask: Callable[[Sequence[int]], Queue] = ask_queue) -> View:
    """The runs at or below a folder, at a time in seconds since the epoch. Raises ConfigError, StorageError."""
    try:
        runs, foreign = find_runs(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(
            f"{folder}: there is no such folder; name the one that holds the runs, or start one: pretrain train CONFIG"
        ) from None
    except OSError as error:
        raise storage_error(error, folder) or ConfigError(f"{folder}: cannot be read ({error.strerror})") from None
    facts = [read_facts(run) for run in runs]
    queue = ask(sorted({job for each in facts for job in jobs_of(each)}))
    rows = [row_of(each, _name(each.folder, folder), queue, now) for each in facts]
    notes = [f"not runs: {', '.join(path.name for path in foreign)}"] if foreign else []
    notes += [queue.note] if queue.note is not None else []
    notes += [f"{row.run}/{note}" for row, each in zip(rows, facts, strict=True) for note in each.notes]
    return View(tuple(sorted(rows, key=lambda row: (_rank(row), _natural(row.run)))), tuple(notes))


def table(view: View, *, width: int, height: int = UNLIMITED) -> list[Text]:
    """The lines of a look, none wider than `width` cells; at most `height` of them where it has room for a row."""
    if not view.rows:
        return [Text("no run is here; `pretrain train CONFIG` starts one"), *_notes(view.notes, width)]
    notes = _notes(view.notes, width)
    room = max(1, height - len(notes) - 3)
    shown = view.rows if len(view.rows) <= room else view.rows[: max(1, room - 1)]
    left = view.rows[len(shown) :]
    more = [_line(f"and {_counted(left)}", width, "dim")] if left else []
    return [_line(_counted(view.rows), width, "bold"), *_grid(shown, width), *more, *notes]


def as_json(view: View) -> dict[str, object]:
    """A look for scripts: the fields of `RunRow` by name, times in seconds."""
    return {"runs": [to_json(asdict(row)) for row in view.rows], "notes": list(view.notes)}


def _grid(rows: Sequence[RunRow], width: int) -> list[Text]:
    cells = {column.title: [column.title, *(_plain(column.text(row)) for row in rows)] for column in _columns()}
    widths = {title: max(map(cell_len, texts)) for title, texts in cells.items()}
    wanted = min(widths["last event"], MAX_EVENT_WIDTH)
    widths |= {"run": min(widths["run"], MAX_RUN_WIDTH), "last event": min(MIN_EVENT_WIDTH, wanted)}
    columns = _fitting(widths, width)
    spare = width - sum(widths[column.title] + 2 for column in columns) + 2
    widths["last event"] += max(0, min(wanted - widths["last event"], spare))
    lines = []
    for index in range(len(rows) + 1):
        colour = _COLOURS.get(rows[index - 1].state, "") if index else "dim"
        line = Text()
        for column in columns:
            text = _fitted(cells[column.title][index], widths[column.title], column.left)
            line.append(text + "  ", style=colour if index == 0 or column.title == "state" else "")
        line.rstrip()
        line.truncate(width)
        lines.append(line)
    return lines


def _fitting(widths: Mapping[str, int], width: int) -> list[_Column]:
    """The columns that fit, the most important ones first; run and state in any case."""
    chosen, room = set(), width + 2
    for column in sorted(_columns(), key=lambda column: column.rank):
        if column.rank == 0 or widths[column.title] + 2 <= room:
            chosen.add(column.title)
            room -= widths[column.title] + 2
    return [column for column in _columns() if column.title in chosen]


def _columns() -> list[_Column]:
    return [
        _Column("run", lambda row: row.run, 0, left=True),
        _Column("state", lambda row: f"{row.state} {_bracketed(row)}".strip(), 0, left=True),
        _Column("step", _steps, 1),
        _Column("loss", lambda row: "-" if row.loss is None else f"{row.loss:.4f}", 2),
        _Column("tok/s", lambda row: short(row.tokens_per_second), 5),
        _Column("ETA", lambda row: "-" if row.eta_s is None else duration(row.eta_s), 3),
        _Column("restarts", lambda row: "-" if row.restarts is None else str(row.restarts), 6),
        _Column("last event", _event, 4, left=True),
    ]


def _bracketed(row: RunRow) -> str:
    return row.detail if not row.detail or row.detail.startswith("on ") else f"({row.detail})"


def _steps(row: RunRow) -> str:
    if row.step is None:
        return "-" if row.total_steps is None else f"0/{row.total_steps}"
    if row.total_steps is None:
        return str(row.step)
    share = math.floor(100 * row.step / row.total_steps)
    return f"{row.step}/{row.total_steps} {share:>3}%"


def _event(row: RunRow) -> str:
    if not row.event:
        return "-"
    age = "" if row.event_age_s is None else f"{duration(max(0.0, row.event_age_s))} ago: "
    return f"{age}{row.event}"


def _counted(rows: Sequence[RunRow]) -> str:
    counts = Counter(row.state for row in sorted(rows, key=_rank))
    return f"{len(rows)} {plural(len(rows), 'run')}: {', '.join(f'{count} {state}' for state, count in counts.items())}"


def _notes(notes: Sequence[str], width: int) -> list[Text]:
    shown = [*notes[:MAX_NOTES], *([f"and {len(notes) - MAX_NOTES} more notes"] if len(notes) > MAX_NOTES else [])]
    return [_line(note, width, "dim") for note in shown]


def _line(text: str, width: int, style: str) -> Text:
    plain = _plain(text)
    return Text(plain if cell_len(plain) <= width else _fitted(plain, width, left=True), style=style)


def _fitted(text: str, width: int, left: bool) -> str:
    """A text in exactly `width` cells."""
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + "…" if width > 0 else ""
    return set_cell_size(text, width) if left else " " * (width - cell_len(text)) + text


def _plain(text: str) -> str:
    """A text from outside without what would move the cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def _rank(row: RunRow) -> int:
    return _ORDER.index(row.state) if row.state in _ORDER else _ORDER.index("completing")


def _name(run: Path, folder: Path) -> str:
    return run.absolute().name if run == folder else str(run.relative_to(folder))


def _natural(name: str) -> list[tuple[int, str]]:
    """For sorting: run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
