"""The parity check: what a layout's ranks recorded against the reference, quantity by quantity.

Every rank's every piece of state is compared, replicas and tied copies too: ranks that drift apart are a fault even if the
copy that is saved is right. Gradients are read out of Adam: after one step from zero moments the first moment is exactly
(1 - beta1) x clipped gradient, under every ZeRO stage and where DeepSpeed keeps no whole gradient.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pretrain.engine.protocol import EvaluationResult, Fragment, StepResult
from pretrain.model.settings import ModelSettings
from pretrain.optim.settings import OptimizerSettings
from pretrain.parity.reference_training import ReferenceRun

Quantity = Literal[
    "agreement",
    "initial",
    "targets",
    "lr",
    "loss",
    "objective",
    "z_loss",
    "auxiliary",
    "grad_norm",
    "gradients",
    "parameters",
    "evaluation",
]
BOUNDS: dict[Quantity, float] = {
    "agreement": 0.0,  # ranks that report different results
    "initial": 0.0,  # weights before the first step, against those of one process
    "targets": 0.0,
    "lr": 1e-12,
    "loss": 1e-5,
    "objective": 1e-5,
    "z_loss": 1e-5,
    "auxiliary": 1e-5,
    "grad_norm": 1e-4,
    "gradients": 1e-5,
    "parameters": 1e-5,
    "evaluation": 1e-5,  # losses at each position, without dropout, after the last step
}
"""Largest deviation, relative (tensors: max|a-b| / max|a|)."""


@dataclass(frozen=True)
class Recording:
    """What one rank gives back: the results of its steps, and copies of its fragments."""

    steps: list[StepResult]
    initial: list[Fragment]
    """Weights as the engine was built."""
    start: list[Fragment]
    """Weights before the first step, vectors moved off 0 and 1."""
    first_moments: list[Fragment]
    """`exp_avg` after the first step."""
    final: list[Fragment]
    evaluation: EvaluationResult
    """Of the first batch, after the last step."""


@dataclass(frozen=True)
class Deviation:
    """The largest deviation of one quantity."""

    value: float = 0.0
    where: str = ""


Verdict = dict[Quantity, Deviation]


def failed(verdict: Verdict, bounds: Mapping[Quantity, float] = BOUNDS) -> set[Quantity]:
    """The quantities beyond their bound; a deviation that is not a number is beyond any."""
    return {quantity for quantity, found in verdict.items() if not found.value <= bounds[quantity]}


def describe(verdict: Verdict, bounds: Mapping[Quantity, float] = BOUNDS) -> str:
    """One line a quantity."""
    lines = [
        f"{name:>10}: {found.value:.2e} (bound {bounds[name]:.0e}) {found.where}" for name, found in verdict.items()
    ]
    return "\n".join(lines)


def whole_tensors(fragments: Iterable[Fragment]) -> dict[str, Tensor]:
    """Global tensors of one kind from the fragments of all ranks that write.

    Raises AssertionError where an element is written by no rank or by more than one.
    """
    pieces = [fragment for fragment in fragments if fragment.writes]
    wholes = {piece.shard.name: torch.zeros(piece.shard.shape) for piece in pieces}
    counts = {name: torch.zeros(whole.shape, dtype=torch.int64) for name, whole in wholes.items()}
    for piece in pieces:
        name = piece.shard.name
        for destination, source in ((wholes[name], piece.tensor), (counts[name], torch.ones(piece.tensor.shape))):
            local = torch.zeros(math.prod(piece.local_shape), dtype=destination.dtype)
            local[piece.start : piece.start + len(source)] = source.to(destination.dtype)
            piece.shard.of(destination).add_(piece.shard.real(local.view(piece.local_shape)))
    for name, count in counts.items():
        assert bool((count == 1).all()), f"{name}: elements are written {count.min()} to {count.max()} times"
    return wholes


def local_part(whole: Tensor, piece: Fragment) -> Tensor:
    """The elements of a global tensor that a piece should hold; padding is 0."""
    local = torch.zeros(piece.local_shape, dtype=whole.dtype)
    piece.shard.real(local).copy_(piece.shard.of(whole))
    return local.view(-1)[piece.start : piece.start + len(piece.tensor)]


def compare(
    recordings: Sequence[Recording],
    one_process: Mapping[str, Tensor],
    reference: ReferenceRun,
    model: ModelSettings,
    optimizer: OptimizerSettings,
) -> Verdict:
    """The largest deviation of each quantity over all ranks, steps and tensors."""
    zero = {name: _without_gradient(name, weight, model) for name, weight in one_process.items()}
    verdict: Verdict = {quantity: Deviation() for quantity in BOUNDS}
    if any(recording.steps != recordings[0].steps for recording in recordings):
        verdict["agreement"] = Deviation(math.inf, "ranks report different results")
    _compare_steps(verdict, recordings[0].steps, reference)
    taken = len(recordings[0].steps)
    if taken == len(reference.steps):
        for recording in recordings:
            _compare_evaluation(verdict, recording.evaluation, reference)
    first, clip = recordings[0].steps[0], optimizer.clip_norm
    unclip = 1.0 if clip is None else max(1.0, (first.grad_norm + 1e-6) / clip)
    drift = sum(step.lr for step in reference.steps[:taken])
    for recording in recordings:
        for piece in recording.initial:
            _note(verdict, "initial", _relative(piece, one_process, 1.0), piece)
        for piece in recording.first_moments:
            scale = unclip / (1 - optimizer.betas[0])
            mask = zero.get(piece.shard.name)
            deviation = _relative(piece, reference.first_gradients, scale, mask, norm=first.grad_norm)
            _note(verdict, "gradients", deviation, piece)
        for piece in recording.final:
            mask = zero.get(piece.shard.name)  # buffers are not among the weights
            _note(verdict, "parameters", _relative(piece, reference.weights[taken - 1], 1.0, mask, drift), piece)
    return verdict


def _compare_steps(verdict: Verdict, steps: Sequence[StepResult], reference: ReferenceRun) -> None:
    for number, (step, expected) in enumerate(zip(steps, reference.steps, strict=False)):
        for quantity in ("targets", "lr", "loss", "objective", "z_loss", "auxiliary", "grad_norm"):
            a, b = getattr(expected, quantity), getattr(step, quantity) or 0.0
            value = abs(a - b) / abs(a) if a else abs(b)
            if not value <= verdict[quantity].value:
                verdict[quantity] = Deviation(value, f"step {number}: {b!r} for {a!r}")


def _compare_evaluation(verdict: Verdict, found: EvaluationResult, reference: ReferenceRun) -> None:
    expected = reference.evaluation
    largest = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
    value, where = math.inf, "targets of other positions"
    if found.loss_by_position.shape == expected.shape and torch.equal(found.targets_by_position, reference.evaluated):
        difference = (found.loss_by_position - expected).abs() / largest
        value, where = float(difference.max()), f"position {int(difference.argmax())}"
    if not value <= verdict["evaluation"].value:
        verdict["evaluation"] = Deviation(value, where)


def _note(verdict: Verdict, quantity: Quantity, value: float, piece: Fragment) -> None:
    if not value <= verdict[quantity].value:
        verdict[quantity] = Deviation(value, f"{piece.shard.name} (part from {piece.shard.starts})")


def _relative(
    piece: Fragment,
    wholes: Mapping[str, Tensor],
    scale: float,
    without_gradient: Tensor | None = None,
    drift: float | None = None,
    norm: float | None = None,
) -> float:
    """max|a-b| / max|a| of a piece; a missing name or a wrong global shape is an infinite deviation.

    Elements without a gradient in mathematics hold rounding noise, which Adam may turn into steps of full length: as gradients
    they must be small beside the tensor's others, or beside the whole gradient (`norm`) where there are none; as parameters
    (`drift` given) within the sum of learning rates.
    """
    whole = wholes.get(piece.shard.name)
    if whole is None or whole.shape != piece.shard.shape:
        return math.inf
    expected = local_part(whole, piece)
    largest = max(float(whole.abs().max()), torch.finfo(torch.float32).tiny)
    if norm is not None and without_gradient is not None and bool(without_gradient.all()):
        largest = norm
    difference = (piece.tensor.double() * scale - expected.double()).abs()
    if not bool(difference.isfinite().all()):
        return math.inf
    if without_gradient is not None and drift is not None:
        noise = local_part(without_gradient, piece).bool()
        if bool((difference[noise] > drift).any()):
            return math.inf
        difference = difference[~noise]
    return float(difference.max()) / largest if difference.numel() else 0.0


def _without_gradient(name: str, weight: Tensor, model: ModelSettings) -> Tensor:
    """Marks elements whose gradient is zero in mathematics.

    Key biases shift all scores of a query alike, save where rotary positions turn them or a norm follows. The one expert of a
    token has the weight 1 whatever the router says, where weights are divided by their sum.
    """
    marks = torch.zeros(weight.shape, dtype=torch.bool)
    turned = model.positions == "rotary" and not name.endswith("cross_attention.key_value.bias")
    if name.endswith("attention.key_value.bias") and not turned and model.qk_norm == "none":
        marks.view(model.kv_heads, 2, model.width_of_head)[:, 0] = True
    moe = model.moe
    if moe is not None and name.endswith("router.weight") and moe.experts_per_token == 1 and moe.normalize_weights:
        balanced = moe.balance == "auxiliary_loss" and moe.auxiliary_loss > 0
        marks[:] = not balanced and moe.router_z_loss == 0
    return marks
