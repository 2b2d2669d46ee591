"""Tiny runs under slurm/train.sbatch, and what they leave behind."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from data_prep.pipeline import prepare_data
from pretrain.checkpoint.format import committed_checkpoints
from pretrain.data.settings import DataSettings
from pretrain.files import read_json_lines
from tests.slurm.cluster import CONTROLLER, ROOT, Cluster

TEMPLATE = ROOT / "slurm" / "train.sbatch"
WORDS = ("red", "green", "blue", "yellow", "white", "black")
CONFIG = """
run: {{dir: {folder}/{name}}}
model: {{d_model: 32, num_layers: 4, num_heads: 4, d_ff: 48, max_sequence_length: 16}}
layout: {{dp: 1, tp: 2, pp: {stages}}}
data: {{dir: {folder}/data, sequence_length: 16}}
train: {{steps: {steps}, global_batch_tokens: 64, micro_batch_sequences: 2, device: cpu, precision: fp32}}
checkpoint: {{interval_steps: {interval}}}
logging: {{wandb: {{mode: offline}}}}
"""


def write_data(folder: Path) -> None:
    """The data of all runs of a folder, made as a user's are."""
    draw = random.Random(3)
    rows = [{"text": " ".join(draw.choices(WORDS, k=20))} for _ in range(200)]
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare = {"corpus": {"source": "jsonl", "paths": [str(corpus)]}, "tokenizer": {"vocab_size": 300}}
    settings = DataSettings.model_validate(
        {"dir": str(folder / "data"), "sequence_length": 16, "prepare": {**prepare, "validation_fraction": 0.1}}
    )
    prepare_data(settings, "local", 1, Console(quiet=True))


class Training:
    """A run of two ranks a node: tensor parallel inside a node, a pipeline stage on each."""

    def __init__(self, cluster: Cluster, folder: Path, name: str, *, steps: int, interval: int, nodes: int = 2) -> None:
        self.cluster = cluster
        self.nodes = nodes
        self.folder = folder
        self.run_dir = folder / name
        self.config = folder / f"{name}.yaml"
        self.config.write_text(CONFIG.format(folder=folder, name=name, stages=nodes, steps=steps, interval=interval))
        self.number = 0
        self.log = Path()

    def submit(self, *options: str, env: Mapping[str, str] | None = None, overrides: tuple[str, ...] = ()) -> int:
        """Submits a job of it; its number."""
        given = {
            "PRETRAIN_PYTHON": sys.executable,
            "PRETRAIN_GPUS_PER_NODE": "0",
            "PRETRAIN_RANKS_PER_NODE": "2",
            "PYTHONPATH": str(ROOT),
        }
        argv = [
            "sbatch",
            "--parsable",
            f"--nodes={self.nodes}",
            f"--chdir={self.folder}",
            *options,
            str(TEMPLATE),
            str(self.config),
        ]
        done = self.cluster.run(CONTROLLER, [*argv, *overrides], env={**given, **(env or {})}, cwd=self.folder)
        assert done.returncode == 0, done.stderr
        self.number = int(done.stdout.strip())
        self.log = self.folder / f"slurm-{self.number}.out"
        return self.number

    def wait_until(self, reached: Callable[[], bool], timeout: float, what: str) -> None:
        """Waits for something of the running job. Fails with its log, at once where the job has failed."""

        def looked() -> bool:
            found = reached()
            assert found or self.cluster.job(self.number).state != "FAILED", f"no {what}: {self.said()}"
            return found

        self.cluster.wait_until(looked, timeout, what, self.said)

    def wait_for_step(self, step: int, timeout: float) -> None:
        """Until a step is noted."""
        self.wait_until(lambda: self.step() >= step, timeout, f"step {step}")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Within it no rank that lives now gets a step further."""
        ranks = self.ranks().values()
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        try:
            yield
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    os.kill(rank, signal.SIGCONT)

    @contextmanager
    def held_until_told(self) -> Iterator[None]:
        """Within it Slurm is brought to ask for the nodes; ranks get no step further until their launchers have heard it."""

        def told() -> int:
            return self.log.read_text().count("USR1: finishing the step")

        before = told()
        with self.stopped():
            yield
            self.wait_until(lambda: told() > before, 90, "word that the nodes are wanted back")

    def ranks(self) -> dict[int, int]:
        """Processes of the ranks that live, on whatever node, as numbered outside."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"--run\0{self.run_dir}\0".encode() in (folder / "cmdline").read_bytes():
                    variables = (folder / "environ").read_bytes().split(b"\0")
                    found |= {int(item[5:]): int(folder.name) for item in variables if item.startswith(b"RANK=")}
            except OSError:
                continue
        return found

    def kill_while_saving(self, rank: int, timeout: float) -> int:
        """Kills a rank as soon as the next checkpoint's folder is there; the step of the checkpoint."""
        victim, checkpoints = self.ranks()[rank], self.run_dir / "checkpoints"
        before, end = set(checkpoints.glob("*/*")), time.monotonic() + timeout
        while not (begun := set(checkpoints.glob("*/*")) - before):
            assert time.monotonic() < end, self.said()
            time.sleep(0.001)
        os.kill(victim, signal.SIGKILL)
        return int(begun.pop().parent.name.removeprefix("step-"))

    def step(self) -> int:
        """The newest step that was noted; 0 before the first."""
        rows = read_json_lines(self.run_dir / "metrics.jsonl")
        return max((row["step"] for row in rows), default=0)

    def losses(self) -> dict[int, Any]:
        """Of each step, as it counts: of the highest attempt."""
        rows = sorted(read_json_lines(self.run_dir / "metrics.jsonl"), key=lambda row: row["attempt"])
        return {row["step"]: row["train/loss"] for row in rows}

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Rows of a kind."""
        return [row for row in read_json_lines(self.run_dir / "events.jsonl") if row["kind"] == kind]

    def committed(self) -> list[tuple[int, int]]:
        """Step and generation of the checkpoints that count."""
        return [(ref.step, ref.generation) for ref in committed_checkpoints(self.run_dir)]

    def starts(self) -> list[tuple[int, int]]:
        """First and last step of each attempt."""
        steps: dict[int, list[int]] = {}
        for row in read_json_lines(self.run_dir / "metrics.jsonl"):
            steps.setdefault(row["attempt"], []).append(row["step"])
        return [(min(of_attempt), max(of_attempt)) for _, of_attempt in sorted(steps.items())]

    def said(self) -> str:
        """The job's log and its events, for a failing test."""
        log = self.log.read_text() if self.log.exists() else "no log"
        return log + "\n".join(json.dumps(row) for row in self.events("job"))
