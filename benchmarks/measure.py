"""The measuring of `train_step.py`: worlds, contestants, table, results file."""

import argparse
import json
import os
import socket
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import contestants
from benchmarks.contest import READ, Clock, Step, Timings, interleave
from benchmarks.contestants import Precision, random_batches, run_config
from benchmarks.machine import describe_machine, finisher, matmul_peak_flops
from benchmarks.profiling import compare
from benchmarks.ratio import Ratio
from pretrain.config import RunConfig
from pretrain.engine.world import end_world, start_world
from pretrain.model.flops import flops_per_token, num_parameters
from pretrain.model.settings import ModelSettings

BUILDERS: dict[str, Callable[[RunConfig, torch.device], Step]] = {
    "engine": contestants.engine_step,
    "layers": contestants.layers_step,
    "minimal": contestants.minimal_step,
}
TITLES = {"engine": "engine", "layers": "plain loop, same layers", "minimal": "plain loop, minimal GPT"}
COMPARISONS = (("engine", "layers", 0.05), ("layers", "minimal", 0.03))
"""(whose, over whose, at most): the goals."""
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""How far engine and plain loop may be apart in any round, in nats; more means that they do not do the same work."""


def measure(arguments: argparse.Namespace) -> None:
    """Measures each precision, prints the tables and writes the results file."""
    console = Console(width=120)
    device = _join_world_of_one(arguments.device)
    found = {}
    for precision in arguments.precision:
        found[precision] = _measure_precision(arguments, precision, device, console)
    end_world()
    now = datetime.now(UTC)
    results = {
        "benchmark": "train_step",
        "date": now.isoformat(timespec="seconds"),
        "command": " ".join(["python", "benchmarks/train_step.py", *sys.argv[1:]]),
        "machine": describe_machine(device),
        "allocator": {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")},
        "results": found,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"train_step-{now:%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"written to {path.name} in {arguments.out.name}/")


def _join_world_of_one(device_kind: str) -> torch.device:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    return start_world(device_kind)


def _measure_precision(
    arguments: argparse.Namespace, precision: Precision, device: torch.device, console: Console
) -> dict[str, Any]:
    config = run_config(
        _model(arguments),
        precision,
        batch_sequences=arguments.batch_sequences,
        micro_batch_sequences=arguments.micro_batch_sequences,
        device=arguments.device,
    )
    peak = _peak(config, device, arguments.clock)
    steps = {name: BUILDERS[name](config, device) for name in arguments.contestants}
    batches = random_batches(config, arguments.warmup + arguments.rounds)
    timings = interleave(steps, batches, warmup=arguments.warmup, finish=finisher(device))
    peak = max(peak, _peak(config, device, arguments.clock))
    found = _summary(config, timings, peak, arguments.clock)
    console.print(_table(precision, config, found))
    if arguments.profile:
        console.print(compare(steps, batches[-1], TITLES))
    return found


def _peak(config: RunConfig, device: torch.device, clock: Clock) -> float:
    """Best FLOP/s of the model's own products: feed-forward up and down, logits."""
    model, rows = config.model, config.train.micro_batch_sequences * config.data.sequence_length
    assert model.vocab_size is not None
    shapes = [
        (rows, model.d_model, model.d_ff),
        (rows, model.d_ff, model.d_model),
        (rows, model.d_model, model.vocab_size),
    ]
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    return matmul_peak_flops(dtype, shapes, device, READ[clock])


def _model(arguments: argparse.Namespace) -> ModelSettings:
    return ModelSettings(
        vocab_size=arguments.vocab_size,
        d_model=arguments.d_model,
        num_layers=arguments.num_layers,
        num_heads=arguments.num_heads,
        d_ff=4 * arguments.d_model,
        max_sequence_length=arguments.sequence_length,
    )


def _summary(config: RunConfig, timings: Timings, peak: float, clock: Clock) -> dict[str, Any]:
    """What goes into the results file for one precision. Raises RuntimeError where the losses show unequal work."""
    seconds = timings.seconds(clock)
    flops = flops_per_token(config.model, config.data.sequence_length)
    tokens = config.train.global_batch_tokens
    found: dict[str, Any] = {
        "model": config.model.model_dump(mode="json"),
        "parameters": num_parameters(config.model),
        "tokens_per_step": tokens,
        "micro_batch_sequences": config.train.micro_batch_sequences,
        "sequence_length": config.data.sequence_length,
        "zero_stage": config.layout.zero_stage,
        "matmul_peak_gflops": round(peak / 1e9, 1),
        "clock": clock,
        "contestants": {},
        "comparisons": {},
    }
    for name in seconds:
        median = statistics.median(seconds[name])
        found["contestants"][name] = {
            "median_step_s": round(median, 4),
            "tokens_per_second": round(tokens / median, 1),
            "share_of_matmul_peak": round(flops * tokens / median / peak, 4),
            "wall_s": [round(value, 4) for value in timings.wall_s[name]],
            "cpu_s": [round(value, 4) for value in timings.cpu_s[name]],
            "last_loss": round(timings.losses[name][-1], 5),
        }
    for name, base, goal in COMPARISONS:
        if name in seconds and base in seconds:
            found["comparisons"][f"{name} / {base}"] = _comparison(timings.ratio(name, base, clock), goal)
    if {"engine", "layers"} <= timings.losses.keys():
        pairs = zip(timings.losses["engine"], timings.losses["layers"], strict=True)
        apart = max(abs(ours - theirs) for ours, theirs in pairs)
        found["largest_loss_difference"] = apart
        if apart > LOSS_TOLERANCE[cast("str", config.train.precision)]:
            raise RuntimeError(f"engine and plain loop are {apart:.2e} nats apart: they do not do the same work")
    return found


def _comparison(ratio: Ratio, goal: float) -> dict[str, Any]:
    return {
        "overhead": round(ratio.median - 1, 4),
        "interval_95": [round(ratio.low - 1, 4), round(ratio.high - 1, 4)],
        "goal": goal,
        "reached": ratio.median - 1 <= goal,
    }


def _table(precision: str, config: RunConfig, found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{precision}: {found['parameters']:,} parameters, {found['tokens_per_step']:,} tokens a step, "
        f"ZeRO-{config.layout.zero_stage}, {found['clock']} time, products at best {found['matmul_peak_gflops']:.0f} GFLOP/s"
    )
    for column in ("", "step, median", "tokens/s", "of peak", "overhead (95 %)", "goal"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in found["contestants"].items():
        over = next((c for key, c in found["comparisons"].items() if key.startswith(f"{name} / ")), None)
        low, high = over["interval_95"] if over else (0.0, 0.0)
        table.add_row(
            TITLES[name],
            f"{row['median_step_s']:.3f} s",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['share_of_matmul_peak']:.1%}",
            f"{over['overhead']:+.1%} ({low:+.1%} to {high:+.1%})" if over else "",
            f"{over['goal']:.0%}" if over else "",
        )
    return table
