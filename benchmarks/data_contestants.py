"""Who takes part in `data.py`: a command each, in an environment of its own where it needs one, that ends with a line of JSON."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

HERE = Path(__file__).parent
PEERS = HERE / "peers"
OWN = "own"
"""The environment that runs this file."""
ENVIRONMENTS = ("datatrove", "readers")
TIMEOUT_S = 3600


@dataclass(frozen=True)
class Contestant:
    """A command."""

    name: str
    title: str
    environment: str
    script: tuple[str, ...]
    """File under benchmarks/ and its first arguments."""
    last: tuple[str, ...] = ()
    """Its last arguments."""

    def python(self, work: Path) -> Path:
        """Interpreter of its environment."""
        return Path(sys.executable) if self.environment == OWN else environment_python(work, self.environment)

    def command(self, work: Path, arguments: Sequence[str]) -> list[str]:
        """The whole command."""
        return [str(self.python(work)), str(HERE / self.script[0]), *self.script[1:], *arguments, *self.last]


@dataclass(frozen=True)
class Goal:
    """By how much one has to be faster than another."""

    ours: str
    peer: str
    at_least: float


TOKENIZERS = (
    Contestant("ray", "pretrain, Ray tasks", OWN, ("data_ours.py", "tokenize"), ("--backend", "ray")),
    Contestant("local", "pretrain, local processes", OWN, ("data_ours.py", "tokenize"), ("--backend", "local")),
    Contestant("pool", "plain multiprocessing", OWN, ("peers/pool_tokenize.py",)),
    Contestant("ray-data", "Ray Data map_batches", OWN, ("peers/ray_data_tokenize.py",)),
    Contestant("datatrove", "datatrove", "datatrove", ("peers/datatrove_tokenize.py",)),
)
TOKENIZER_GOALS = (Goal("ray", "datatrove", 15), Goal("ray", "ray-data", 4), Goal("ray", "pool", 0.9))
READERS = (
    Contestant("batches", "pretrain", OWN, ("data_ours.py", "batches", "cross")),
    Contestant("isolated", "pretrain, documents isolated", OWN, ("data_ours.py", "batches", "isolate")),
    Contestant("torch-0", "torch DataLoader, memory map", OWN, ("peers/torch_batches.py",)),
    Contestant("torch-2", "the same, 2 workers", OWN, ("peers/torch_batches.py",), ("--workers", "2")),
    Contestant("litdata", "litdata", "readers", ("peers/litdata_batches.py",)),
    Contestant("megatron", "Megatron GPTDataset", "readers", ("peers/megatron_batches.py",)),
    Contestant("mosaic", "MosaicML streaming", "readers", ("peers/mosaic_batches.py",)),
)
READER_GOALS = (Goal("batches", "megatron", 10), Goal("batches", "mosaic", 20), Goal("batches", "litdata", 2))


class Failed(Exception):
    """A contestant did not end well."""


def environment_python(work: Path, name: str) -> Path:
    """Interpreter of a peers' environment."""
    return work / "envs" / name / "bin" / "python"


def set_up(work: Path, console: Console) -> None:
    """Makes the peers' environments, each from its list of fixed versions. One that fails is told; the others are made."""
    for number, name in enumerate(ENVIRONMENTS, 1):
        console.print(f"environment {number} of {len(ENVIRONMENTS)}: {name}")
        python = environment_python(work, name)
        steps = (
            [sys.executable, "-m", "venv", str(python.parents[1])],
            [str(python), "-m", "pip", "install", "-q", "--no-deps", "-r", str(PEERS / f"requirements-{name}.txt")],
        )
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
            if done.returncode:
                console.print(f"  failed: {_last_lines(done.stderr)}")
                break


def present(contestants: Sequence[Contestant], work: Path, console: Console) -> list[Contestant]:
    """Those whose environment is there; the others are told."""
    found = [contestant for contestant in contestants if contestant.python(work).exists()]
    for contestant in contestants:
        if contestant not in found:
            console.print(f"left out: {contestant.title} (make its environment with --setup)")
    return found


def run(contestant: Contestant, work: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a contestant's command and returns its report. Raises Failed."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if contestant.environment == OWN:
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(PEERS), os.environ.get("PYTHONPATH", "")])
    else:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        contestant.command(work, arguments),
        capture_output=True, text=True, errors="replace", env=environment, timeout=TIMEOUT_S,
    )  # fmt: skip
    if done.returncode:
        raise Failed(f"{contestant.title}: exit code {done.returncode}: {_last_lines(done.stderr)}")
    return parse_report(contestant.title, done.stdout)


def parse_report(title: str, output: str) -> dict[str, Any]:
    """The report in the last line of an output, whatever a library printed before it. Raises Failed."""
    lines = output.strip().splitlines()
    try:
        report = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        report = None
    if not isinstance(report, dict):
        raise Failed(f"{title}: its last line is no report: {lines[-1][:200] if lines else 'it printed nothing'}")
    return report


def _last_lines(text: str) -> str:
    return " | ".join(text.strip().splitlines()[-3:])
