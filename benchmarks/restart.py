"""Restart in place: a rank is killed (SIGKILL) at a random moment; do the ranks train again, and after how many seconds?

    python -m benchmarks.restart [--times 20] [--ranks 2 4] [--seed 0]

Each try is a run of the real trainer and launcher with a tiny model on CPU (gloo): on 2 ranks ZeRO-1 over 2 data ranks, on 4
tp=2, pp=2. One rank, drawn from the seed, is killed in one of three phases, dealt out evenly: `start` (from the moment that its
process is there to the first step), `steps`, and `save` (from the moment that a checkpoint's temporary folder is there). What the
kill really hit is looked up and noted. A try counts as back when the launcher exits 0 with every step trained; the culprit as
named when the launcher's line and its event both say which rank it was; and its losses as equal when loss and gradient norm of
every step, repeated ones included, are bit for bit those of a twin that nobody killed.

Seconds are wall clock from the kill: to the launcher's seeing it (noticed), to the end of all ranks (ended), to the first
process of a new one (started), to all of them having met (joined), and to the first step that is trained again. Ctrl-C ends the
tries; those that are done are written.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.processor import cpu_name, public_text
from pretrain.files import read_json_lines
from tests.data.folders import text_documents, write_folder

PHASES = ("start", "steps", "save")
MARKS = ("noticed", "ended", "started", "joined", "first_step")
LAYOUTS = {1: "{}", 2: "{dp: 2}", 3: "{dp: 3}", 4: "{tp: 2, pp: 2}"}
STEPS = 30
SAVE_EVERY = 5
PATIENCE_S = 400.0
"""For one try; a try that takes longer has failed."""
POLL_S = 0.002

CONFIG = """
name: {name}
run: {{dir: {folder}/{name}}}
model: {{d_model: 128, num_layers: 2, num_heads: 4, d_ff: 512}}
layout: {layout}
data: {{dir: {folder}/data, sequence_length: 64}}
train: {{steps: {steps}, global_batch_tokens: 768, micro_batch_sequences: 1, device: cpu, precision: fp32}}
checkpoint: {{interval_steps: {save_every}}}
evaluation: {{interval_steps: null, baseline: none}}
logging: {{wandb: {{mode: disabled}}}}
"""
LAUNCHER = """
import sys
from launch.cli import exit_code_of
from launch.torchrun import Launch, run
from pretrain.config import load_config
from pretrain.resolve import World

def work():
    run(load_config(sys.argv[1]), Launch(World(int(sys.argv[2])), max_restarts=3))

sys.exit(exit_code_of(work))
"""
"""What `pretrain train --max-restarts 3` does, without the evaluation that follows a finished run."""


class Launched:
    """A launcher's process, seen from outside."""

    def __init__(self, folder: Path, name: str, ranks: int) -> None:
        config = folder / f"{name}.yaml"
        config.write_text(
            CONFIG.format(name=name, folder=folder, layout=LAYOUTS[ranks], steps=STEPS, save_every=SAVE_EVERY)
        )
        self.run_dir = folder / name
        self.errors = folder / f"{name}.err"
        self.began = time.time()
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-c", LAUNCHER, str(config), str(ranks)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
                start_new_session=True,
            )

    def until(self, holds: Callable[[], Any], poll_s: float = POLL_S) -> Any:
        """What holds; None where the launcher ended before. Raises TimeoutError."""
        while not (found := holds()):
            if self.process.poll() is not None:
                return None
            if time.time() - self.began > PATIENCE_S:
                raise TimeoutError
            time.sleep(poll_s)
        return found

    def ranks(self) -> dict[int, int]:
        """Process ids of the ranks that run, by number."""
        found = {}
        for pid in _children(self.process.pid):
            variables = _environment(pid)
            if "RANK" in variables and not _is_over(pid):
                found[int(variables["RANK"])] = pid
        return found

    def rows(self, generation: int | None = None) -> list[dict[str, Any]]:
        """Of metrics.jsonl, of one launch or all."""
        rows = read_json_lines(self.run_dir / "metrics.jsonl")
        return [row for row in rows if generation is None or row["attempt"] == generation]

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of events.jsonl."""
        return [row for row in read_json_lines(self.run_dir / "events.jsonl") if row["kind"] == kind]

    def is_saving(self) -> bool:
        """Whether a checkpoint is begun and not committed."""
        steps = (self.run_dir / "checkpoints").glob("step-*")
        folders = [folder for step in steps for folder in step.iterdir()]
        return any(folder.suffix == ".partial" or not (folder / "COMMITTED").exists() for folder in folders)

    def close(self) -> None:
        """Ends the launcher, and with it the ranks."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Twin:
    """A run that nobody killed."""

    results: dict[int, tuple[str, str]]
    """Loss and gradient norm of each step, as written."""
    start_s: float
    """From the first rank's process to the first step."""
    step_s: float
    save_s: float


def main() -> None:
    """Runs the tries, prints a table and writes the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="tries for each number of ranks")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4], choices=sorted(LAYOUTS)[1:])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    console, load_before = Console(width=150), os.getloadavg()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it would be ignored
    with tempfile.TemporaryDirectory(prefix="restart-") as folder:
        tries = _tries(arguments, Path(folder), console)
    now, ranks = datetime.now(UTC), " ".join(map(str, arguments.ranks))
    report = {
        "benchmark": "restart",
        "date": now.isoformat(timespec="seconds"),
        "command": f"python -m benchmarks.restart --times {arguments.times} --ranks {ranks} --seed {arguments.seed}",
        "machine": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "load_average_before": [round(value, 1) for value in load_before],
            "load_average_after": [round(value, 1) for value in os.getloadavg()],
            "torch": version("torch"),
            "deepspeed": version("deepspeed"),
        },
        "steps": STEPS,
        "checkpoint_interval_steps": SAVE_EVERY,
        "summary": {str(ranks): summary(t for t in tries if t["ranks"] == ranks) for ranks in arguments.ranks},
        "tries": tries,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"restart-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    console.print(_table(report["summary"]))
    console.print(f"written to {path.name} in {arguments.out.name}/")


def _tries(arguments: argparse.Namespace, folder: Path, console: Console) -> list[dict[str, Any]]:
    documents = [text_documents(count, seed, vocab_size=500) for count, seed in ((4000, 1), (100, 2))]
    write_folder(folder / "data", *documents, vocab_size=500, shard_documents=500)
    (folder / "data/token_bytes.bin").write_bytes(b"\1\0" * 500)
    source, tries = random.Random(arguments.seed), []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress, suppress(KeyboardInterrupt):
        task = progress.add_task("tries", total=arguments.times * len(arguments.ranks))
        twins = {ranks: _run_twin(folder, ranks) for ranks in arguments.ranks}
        for number, ranks in ((n, ranks) for n in range(arguments.times) for ranks in arguments.ranks):
            phase = PHASES[number % len(PHASES)]
            found = _try(folder, f"run-{ranks}-{number}", ranks, phase, twins[ranks], source)
            tries.append({"ranks": ranks, "try": number, **found})
            progress.advance(task)
            if not (found["back"] and found["named"] and found["equal"]):
                progress.console.print(f"{ranks} ranks, try {number}, {phase}: {found}")
            else:
                del tries[-1]["end"]  # what the launcher said is kept of a try that failed alone
    return tries


def _run_twin(folder: Path, ranks: int) -> Twin:
    launched = Launched(folder, f"twin-{ranks}", ranks)
    try:
        launched.until(launched.ranks)
        started = time.time()
        launched.until(lambda: False, 0.1)
    finally:
        launched.close()
    rows = launched.rows()
    if launched.process.returncode or len(rows) != STEPS:
        raise SystemExit(f"the run without a kill failed: {launched.errors.read_text()}")
    times = [row["time"] for row in rows]
    saves = [row["checkpoint/save_s"] for row in rows if "checkpoint/save_s" in row]
    return Twin(
        {row["step"]: _result(row) for row in rows},
        start_s=times[0] - started,
        step_s=statistics.median(after - before for before, after in pairwise(times)),
        save_s=statistics.median(saves),
    )


def _try(folder: Path, name: str, ranks: int, phase: str, twin: Twin, source: random.Random) -> dict[str, Any]:
    """One run with one kill."""
    rank, share, at_step = source.randrange(ranks), source.random(), source.randint(1, STEPS - SAVE_EVERY - 1)
    launched = Launched(folder, name, ranks)
    found: dict[str, Any] = {"phase": phase, "rank": rank}
    try:
        victim = launched.until(lambda: launched.ranks().get(rank))
        _wait_for(launched, phase, at_step, share, twin)
        found["hit"] = "save" if launched.is_saving() else "steps" if launched.rows() else "start"
        found["after_step"] = len(launched.rows())
        old = launched.ranks()
        os.kill(victim, signal.SIGKILL)
        killed = time.time()
        launched.until(lambda: not old.items() & launched.ranks().items(), 0.01)
        ended = time.time()
        launched.until(launched.ranks, 0.01)
        started = time.time()
        launched.until(lambda: False, 0.1)
    except (TimeoutError, ProcessLookupError) as error:
        return {**found, "back": False, "named": False, "equal": False, "end": type(error).__name__}
    finally:
        launched.close()
    return found | _judged(launched, rank, twin) | _seconds(launched, killed, ended, started)


def _wait_for(launched: Launched, phase: str, at_step: int, share: float, twin: Twin) -> None:
    """Returns at the moment of the kill: `share` of the way through the phase."""
    if phase == "start":
        time.sleep(share * twin.start_s)
        return
    launched.until(lambda: len(launched.rows()) >= at_step)
    if phase == "save":
        launched.until(launched.is_saving, 0.0)
    time.sleep(share * (twin.save_s if phase == "save" else twin.step_s))


def _judged(launched: Launched, rank: int, twin: Twin) -> dict[str, Any]:
    """Whether it came back, who was named, and whether what it trained is what the twin did."""
    told, code = launched.errors.read_text(), launched.process.returncode
    restarts, lines = launched.events("restart"), [line for line in told.splitlines() if line.startswith("restart ")]
    named = [event["rank"] for event in restarts] == [rank] and len(lines) == 1
    results = [(row["step"], _result(row)) for row in launched.rows()]
    return {
        "back": code == 0 and {step for step, _ in results} == twin.results.keys(),
        "named": named and f"rank {rank} was killed by SIGKILL" in lines[0],
        "equal": all(twin.results[step] == result for step, result in results),
        "exit_code": code,
        "restarts": len(restarts),
        "end": public_text(told.strip()[-2000:]),
    }


def _result(row: Mapping[str, Any]) -> tuple[str, str]:
    return repr(row["train/loss"]), repr(row["train/grad_norm"])


def _seconds(launched: Launched, killed: float, ended: float, started: float) -> dict[str, Any]:
    """From the kill to each mark; nothing where one is missing."""
    restarts, joined, again = launched.events("restart"), launched.events("start"), launched.rows(2)
    joined = [event for event in joined if event["attempt"] == 2]
    if not (restarts and joined and again):
        return {"seconds": None}
    marks = (restarts[0]["noticed"] or ended, ended, started, joined[0]["time"], again[0]["time"])
    return {"seconds": {mark: round(at - killed, 3) for mark, at in zip(MARKS, marks, strict=True)}}


def summary(tries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, and of each mark the median and the worst in seconds from the kill."""
    tries = list(tries)
    timed = [found["seconds"] for found in tries if found.get("seconds")]
    marks = {mark: [seconds[mark] for seconds in timed] for mark in MARKS} if timed else {}
    return {
        "tries": len(tries),
        **{name: sum(found[name] for found in tries) for name in ("back", "named", "equal")},
        "hit": {phase: sum(found.get("hit") == phase for found in tries) for phase in PHASES},
        "seconds": {
            mark: {"median": round(statistics.median(values), 2), "worst": max(values)}
            for mark, values in marks.items()
        },
    }


def _table(found: Mapping[str, Any]) -> Table:
    table = Table(
        "ranks", "tries", "back", "named", "equal", "hit", *MARKS, title="seconds from the kill: median (worst)"
    )
    for ranks, row in found.items():
        hits = ", ".join(f"{count} {phase}" for phase, count in row["hit"].items())
        seconds = [
            f"{row['seconds'][mark]['median']:.1f} ({row['seconds'][mark]['worst']:.1f})" for mark in row["seconds"]
        ]
        table.add_row(ranks, *(str(row[name]) for name in ("tries", "back", "named", "equal")), hits, *seconds)
    return table


def _children(pid: int) -> Sequence[int]:
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _environment(pid: int) -> dict[str, str]:
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return {}
    return dict(entry.split("=", 1) for entry in content.split("\0") if "=" in entry)


def _is_over(pid: int) -> bool:
    """Whether a process has ended, and waits to be reaped at most."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


if __name__ == "__main__":
    main()
