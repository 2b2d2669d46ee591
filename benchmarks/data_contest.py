"""The measuring of `data.py`: rounds, ratios, tables.

Each round runs every contestant once, in an order that rotates. What is compared are ratios of rates within a round, by their
median, with a bootstrap interval; the clock is CPU time, user and system, of a contestant's process and all its descendants.
"""

import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.data_contestants import TOKENIZERS, Contestant, Failed, Goal, run
from benchmarks.ratio import Ratio

Rounds = dict[str, list[dict[str, Any]]]
"""Reports of each contestant, by round."""


def tokenizing(
    contestants: Sequence[Contestant], corpus: Path, work: Path, workers: int, rounds: int, console: Console
) -> Rounds:
    """Every contestant tokenizes the corpus, in every round into a new folder. Raises RuntimeError where token counts differ."""
    out = work / "out"

    def once(contestant: Contestant) -> dict[str, Any]:
        shutil.rmtree(out, ignore_errors=True)
        return run(contestant, work, _tokenizing_arguments(corpus, out, workers))

    found = _rounds(contestants, rounds, once, console)
    shutil.rmtree(out, ignore_errors=True)
    check_equal({name: (row["tokens"], row["documents"]) for name, rows in found.items() for row in rows})
    return found


def check_equal(counts: dict[str, tuple[int, int]]) -> None:
    """Raises RuntimeError where contestants made different numbers of (tokens, documents) of one corpus."""
    if len(set(counts.values())) > 1:
        listed = "; ".join(f"{name}: {tokens:,} of {documents:,}" for name, (tokens, documents) in counts.items())
        raise RuntimeError(f"tokens and documents differ, so the work does too: {listed}")


def reading(
    contestants: Sequence[Contestant], folder: Path, work: Path, arguments: Sequence[str], rounds: int, console: Console
) -> Rounds:
    """Every contestant delivers batches of the folder that `make_stream` made."""
    ready = []
    for contestant in contestants:
        console.print(f"writing the format of {contestant.title}")
        try:
            if contestant.script[0].startswith("peers/"):
                run(contestant, work, [*_reading_arguments(contestant, folder), "--make", *arguments])
            ready.append(contestant)
        except Failed as failure:
            console.print(f"left out: {failure}")
    return _rounds(ready, rounds, lambda who: run(who, work, [*_reading_arguments(who, folder), *arguments]), console)


def make_stream(corpus: Path, folder: Path, work: Path, workers: int, console: Console) -> int:
    """Tokenizes the corpus twice more: as the project's shards, and as one file of tokens for everyone else. Returns tokens."""
    console.print("tokenizing for the readers")
    shutil.rmtree(folder, ignore_errors=True)
    by_name = {contestant.name: contestant for contestant in TOKENIZERS}
    run(by_name["local"], work, _tokenizing_arguments(corpus, folder / "shards", workers))
    run(by_name["pool"], work, _tokenizing_arguments(corpus, folder / "raw", workers))
    stream = folder / "stream"
    stream.mkdir()
    with (stream / "stream.tokens").open("wb") as file:
        for path in sorted((folder / "raw").glob("*.tokens")):
            file.write(path.read_bytes())
    lengths = [np.load(path) for path in sorted((folder / "raw").glob("*.lengths.npy"))]
    ends = np.cumsum(np.concatenate(lengths))
    np.save(stream / "ends.npy", ends)
    shutil.rmtree(folder / "raw")
    return int(ends[-1])


def _tokenizing_arguments(corpus: Path, out: Path, workers: int) -> list[str]:
    tokenizer = corpus / "tokenizer.json"
    return ["--corpus", str(corpus), "--tokenizer", str(tokenizer), "--out", str(out), "--workers", str(workers)]


def _reading_arguments(contestant: Contestant, folder: Path) -> list[str]:
    stream = "stream" if contestant.script[0].startswith("peers/") else "shards"
    return ["--stream", str(folder / stream), "--out", str(folder / "formats" / contestant.name)]


def _rounds(contestants: Sequence[Contestant], rounds: int, once: Any, console: Console) -> Rounds:
    """Runs the rounds; one that fails is told and takes no further part."""
    found: Rounds = {contestant.name: [] for contestant in contestants}
    failed: set[str] = set()
    for number in range(rounds):
        shift = number % max(len(contestants), 1)
        for contestant in [*contestants[shift:], *contestants[:shift]]:
            if contestant.name in failed:
                continue
            try:
                report = once(contestant)
            except Failed as failure:
                console.print(f"left out: {failure}")
                failed.add(contestant.name)
                continue
            found[contestant.name].append(report)
            cost = f"{report['work_cpu_s']:.2f} CPU-s (whole command {report['command_cpu_s']:.2f})"
            console.print(f"round {number + 1} of {rounds}: {contestant.title}: {cost}, {report['wall_s']:.1f} s")
    return {name: rows for name, rows in found.items() if name not in failed}


def summary(rounds: Rounds, goals: Sequence[Goal], units: dict[str, list[float]]) -> dict[str, Any]:
    """What goes into the results file.

    Args:
        rounds: reports.
        goals: compared are the pairs that took part.
        units: work done by each contestant in each round, in MB or million tokens.
    """
    work, whole = (_rates(rounds, units, clock) for clock in ("work_cpu_s", "command_cpu_s"))
    found: dict[str, Any] = {"contestants": {}, "comparisons": {}}
    for name, rows in rounds.items():
        found["contestants"][name] = {
            "per_cpu_s": round(statistics.median(work[name]), 3),
            "per_cpu_s_whole_command": round(statistics.median(whole[name]), 3),
            "rounds": rows,
        }
    for goal in goals:
        if goal.ours in work and goal.peer in work:
            ratio, commands = (_ratio(rates[goal.ours], rates[goal.peer]) for rates in (work, whole))
            found["comparisons"][f"{goal.ours} / {goal.peer}"] = {
                "times": round(ratio.median, 3),
                "interval_95": [round(ratio.low, 3), round(ratio.high, 3)],
                "times_whole_command": round(commands.median, 3),
                "goal": goal.at_least,
                "reached": ratio.median >= goal.at_least,
            }
    return found


def _rates(rounds: Rounds, units: dict[str, list[float]], clock: str) -> dict[str, list[float]]:
    return {
        name: [done / max(row[clock], 0.01) for done, row in zip(units[name], rows, strict=True)]
        for name, rows in rounds.items()
    }


def _ratio(ours: Sequence[float], peers: Sequence[float]) -> Ratio:
    return Ratio.of([one / other for one, other in zip(ours, peers, strict=True)])


def table(title: str, unit: str, found: dict[str, Any], contestants: Sequence[Contestant], whole: str) -> Table:
    """For people: a row for each contestant; beside a peer, how many times faster the project is.

    Args:
        title: of the table.
        unit: of the rate.
        found: from `summary`.
        contestants: for their titles.
        whole: heading of the column of whole commands; empty: none, for those that run for a set time.
    """
    shown = Table(title=title)
    columns = (
        "",
        f"{unit} per CPU-s",
        *([whole] if whole else []),
        "pretrain over it (95 %)",
        *(["as a command"] if whole else []),
        "goal",
    )
    for column in columns:
        shown.add_column(column, justify="left" if not column else "right")
    for contestant in contestants:
        row = found["contestants"].get(contestant.name)
        if row is None:
            continue
        over = next((c for key, c in found["comparisons"].items() if key.endswith(f"/ {contestant.name}")), None)
        low, high = over["interval_95"] if over else (0.0, 0.0)
        shown.add_row(
            contestant.title,
            f"{row['per_cpu_s']:.1f}",
            *([f"{row['per_cpu_s_whole_command']:.1f}"] if whole else []),
            f"{over['times']:.2f} x ({low:.2f} to {high:.2f})" if over else "",
            *([f"{over['times_whole_command']:.2f} x" if over else ""] if whole else []),
            f"{over['goal']:g} x: {'reached' if over['reached'] else 'missed'}" if over else "",
        )
    return shown
