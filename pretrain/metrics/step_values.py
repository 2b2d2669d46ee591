"""The metrics of a step and of an evaluation, from what the engine tells. Pure functions; names as the project spells them.

Throughput counts valid targets: padding and positions without a label are no work done. MFU is the share of the
device's peak that the model's own arithmetic takes (Chowdhery et al. 2022, PaLM, appendix B), given only where the peak
is known: bf16 on a GPU of the table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pretrain.engine.protocol import EvaluationResult, StepResult
from pretrain.metrics.expert_load import load_values

FIRST_POSITIONS = 8
GIB = 2**30


@dataclass(frozen=True)
class StepCost:
    """What a step took: the largest values over all ranks."""

    duration_s: float
    """From asking for the batch to the end of the optimizer's attempt."""
    wait_s: float
    """Of it, waiting for data."""
    device_peak_bytes: float
    """Most device memory so far; 0 on a CPU."""
    host_bytes: float
    """Resident memory of a rank."""


@dataclass(frozen=True)
class Arithmetic:
    """What turns tokens per second into FLOP/s and MFU."""

    flops_per_token: float
    num_devices: int
    peak_flops: float | None
    """Of one device; None where it is not known."""


@dataclass(frozen=True)
class Progress:
    """How far the run is, the step included."""

    targets: int
    samples: int
    epoch: float
    skipped_steps: int


def step_values(result: StepResult, cost: StepCost, arithmetic: Arithmetic, progress: Progress) -> dict[str, float]:
    """The row of a step."""
    rate = result.targets / cost.duration_s
    flops = rate * arithmetic.flops_per_token / arithmetic.num_devices
    values = {
        "train/loss": result.loss,
        "train/objective": result.objective,
        "train/perplexity": perplexity(result.loss),
        "train/grad_norm": result.grad_norm,
        "train/lr": result.lr,
        "train/z_loss": result.z_loss,
        "train/tokens": float(progress.targets),
        "train/samples": float(progress.samples),
        "train/epoch": progress.epoch,
        "train/skipped_steps": float(progress.skipped_steps),
        "perf/step_time_s": cost.duration_s,
        "perf/tokens_per_second": rate,
        "perf/tokens_per_second_per_device": rate / arithmetic.num_devices,
        "perf/tflops_per_device": flops / 1e12,
        "data/wait_fraction": cost.wait_s / cost.duration_s,
        "memory/host_rss_gib": cost.host_bytes / GIB,
    }
    if arithmetic.peak_flops is not None:
        values["perf/mfu"] = flops / arithmetic.peak_flops
    if result.pipeline_bubble is not None:
        values["perf/pipeline_bubble"] = result.pipeline_bubble
    if result.expert_load is not None:
        values |= {"train/auxiliary_loss": result.auxiliary} | load_values(result.expert_load)
    if cost.device_peak_bytes:
        values["memory/device_peak_gib"] = cost.device_peak_bytes / GIB
    return values


def source_values(samples: Mapping[str, int], epochs: Mapping[str, float], sequence_length: int) -> dict[str, float]:
    """Tokens (padding included) and passes so far of each source of the data, where there are several.

    `samples` and `epochs` are by the name of the source; `epochs` lacks those whose size is not known yet.
    """
    if len(samples) < 2:
        return {}
    tokens = {f"data/tokens/{name}": float(count * sequence_length) for name, count in samples.items()}
    return tokens | {f"data/epochs/{name}": passes for name, passes in epochs.items()}


def training_losses(losses: Sequence[float | None], names: Sequence[str]) -> dict[str, float]:
    """Training loss of a step by source; a source that the batch has no target of is left out."""
    told = zip(names, losses, strict=True) if losses else ()
    return {f"train/loss/{name}": loss for name, loss in told if loss is not None}


def source_losses(results: Mapping[str, EvaluationResult]) -> dict[str, float]:
    """Validation loss by source, where there are several."""
    return {f"eval/loss/{name}": result.loss for name, result in results.items()} if len(results) > 1 else {}


def step_time_values(durations_s: Sequence[float]) -> dict[str, float]:
    """Percentiles of the last steps' times."""
    ordered = sorted(durations_s)
    return {f"perf/step_time_s/p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in (50, 95)}


def evaluation_values(result: EvaluationResult, target_bytes: int) -> dict[str, float]:
    """Means over an evaluation set: loss, and whether the model uses its context (a lower loss past the middle).

    `target_bytes` is how many bytes of text all valid targets stand for.
    """
    middle = len(result.loss_by_position) // 2
    values = {
        "eval/loss": result.loss,
        "eval/perplexity": perplexity(result.loss),
        f"eval/loss_first_{FIRST_POSITIONS}": _mean(result, 0, FIRST_POSITIONS),
        "eval/loss_past_middle": _mean(result, middle, len(result.loss_by_position)),
    }
    if target_bytes:
        values["eval/bits_per_byte"] = float(result.loss_by_position.sum()) / math.log(2) / target_bytes
    return values


def perplexity(loss: float) -> float:
    """exp(loss), bounded so that a diverged loss does not overflow."""
    return math.exp(min(loss, 700.0))


def _mean(result: EvaluationResult, start: int, stop: int) -> float:
    """Loss per valid target at positions [start, stop); not a number where there is none."""
    targets = int(result.targets_by_position[start:stop].sum())
    return float(result.loss_by_position[start:stop].sum()) / targets if targets else math.nan
