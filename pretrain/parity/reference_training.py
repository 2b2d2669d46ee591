"""The plain training loop of the reference: losses, learning rate, clipping, AdamW, in float64; settings alone are imported.

What experts add to the objective is averaged over the sequences of the global batch, whatever its valid targets, and a router's
bias moves once a step by the loads of the whole global batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.engine.settings import LossSettings
from pretrain.optim.settings import OptimizerSettings, ScheduleSettings
from pretrain.parity.reference import Batch, ReferenceModel, Weights
from pretrain.parity.reference_experts import moved_bias

IGNORED = -100
ROUTER_BIAS = ".router.bias"
"""How the names of buffers end: biases that are moved against the load, not trained."""


@dataclass(frozen=True)
class ReferenceStep:
    """What one step of the loop gave."""

    loss: float
    objective: float
    z_loss: float
    auxiliary: float
    grad_norm: float
    lr: float
    targets: int
    margin: float = math.inf
    """Least margin by which experts were chosen; inf without experts."""


@dataclass(frozen=True)
class ReferenceRun:
    """The trace of a run: float64, by global name."""

    steps: list[ReferenceStep]
    first_gradients: dict[str, Tensor]
    """Of the first step, before clipping."""
    weights: list[dict[str, Tensor]]
    """After each step."""
    evaluation: Tensor
    """(S,): cross-entropy of the first batch summed at each position, without dropout, after the last step."""
    evaluated: Tensor
    """(S,): valid targets there."""


def token_losses(logits: Tensor, labels: Tensor, loss: LossSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over valid targets: cross-entropy, objective without z-loss, z-loss. Szegedy et al. 2016; PaLM, section 5."""
    valid = labels != IGNORED
    logits, labels = logits[valid], labels[valid]  # (N, V), (N,)
    log_z = logits.exp().sum(-1).log()
    cross_entropy = log_z - logits.gather(-1, labels[:, None]).squeeze(-1)
    uniform = log_z - logits.mean(-1)
    smoothed = (1 - loss.label_smoothing) * cross_entropy + loss.label_smoothing * uniform
    return cross_entropy.sum(), smoothed.sum(), loss.z_loss * log_z.square().sum()


def learning_rate(step: int, schedule: ScheduleSettings, peak: float, *, total_steps: int, d_model: int) -> float:
    """Of the step with this number, counted from 1 as in the papers."""
    if schedule.name == "noam":
        return peak * d_model**-0.5 * min(step**-0.5, step * schedule.warmup_steps**-1.5)
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    end = schedule.decay_steps or total_steps
    progress = min(1.0, (step - schedule.warmup_steps) / (end - schedule.warmup_steps))
    shape = 1 - progress if schedule.name == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return peak * (schedule.final_fraction + (1 - schedule.final_fraction) * shape)


def train(
    model: ReferenceModel,
    weights: Weights,
    batches: Sequence[Batch],
    *,
    loss: LossSettings,
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    total_steps: int,
) -> ReferenceRun:
    """Trains on one global batch a step: the mean over its valid targets, clipping to the global norm, AdamW."""
    whole = {name: weight.double().clone() for name, weight in weights.items()}
    buffers = {name: value for name, value in whole.items() if name.endswith(ROUTER_BIAS)}
    parameters = {name: value.requires_grad_() for name, value in whole.items() if name not in buffers}
    adamw = _adamw(parameters, optimizer)
    steps: list[ReferenceStep] = []
    first_gradients: dict[str, Tensor] = {}
    trace: list[dict[str, Tensor]] = []
    for number, batch in enumerate(batches, start=1):
        lr = learning_rate(number, schedule, optimizer.peak_lr, total_steps=total_steps, d_model=model.settings.d_model)
        forward = model.forward(parameters | buffers, batch)
        cross_entropy, smoothed, z_loss = token_losses(forward.logits, batch["labels"], loss)
        targets = int((batch["labels"] != IGNORED).sum())
        objective = (smoothed + z_loss) / targets + forward.auxiliary.mean()
        adamw.zero_grad()
        objective.backward()
        gradients = {name: _gradient(name, p) for name, p in parameters.items()}
        if not first_gradients:
            first_gradients = {name: gradient.clone() for name, gradient in gradients.items()}
        norm = _clip(gradients, optimizer.clip_norm)
        for group in adamw.param_groups:
            group["lr"] = lr
        adamw.step()
        for name, load in forward.loads.items():
            if name + ROUTER_BIAS in buffers:
                assert model.settings.moe is not None
                buffers[name + ROUTER_BIAS] = moved_bias(buffers[name + ROUTER_BIAS], load, model.settings.moe)
        trace.append({name: p.detach().clone() for name, p in (parameters | buffers).items()})
        steps.append(
            ReferenceStep(
                loss=float(cross_entropy.detach()) / targets,
                objective=float(objective.detach()),
                z_loss=float(z_loss.detach()) / targets,
                auxiliary=float(forward.auxiliary.detach().mean()),
                grad_norm=norm,
                lr=lr,
                targets=targets,
                margin=forward.margin,
            )
        )
    return ReferenceRun(steps, first_gradients, trace, *evaluate(model, trace[-1], batches[0]))


@torch.no_grad()
def evaluate(model: ReferenceModel, weights: Weights, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a batch summed at each position (S,), and the valid targets there, without dropout."""
    whole = ReferenceModel(model.settings, lambda *_: torch.ones(()))
    logits, labels = whole.logits(weights, batch), batch["labels"]
    losses = [
        token_losses(logits[:, s : s + 1], labels[:, s : s + 1], LossSettings())[0] for s in range(labels.shape[1])
    ]
    return torch.stack(losses), (labels != IGNORED).sum(0)


def _adamw(parameters: Weights, optimizer: OptimizerSettings) -> torch.optim.AdamW:
    """Vectors, and the biases of stacked experts, are never decayed."""
    vectors = {name for name, p in parameters.items() if p.ndim == 1 or name.endswith(".bias")}
    return torch.optim.AdamW(
        [
            {
                "params": [p for name, p in parameters.items() if name not in vectors],
                "weight_decay": optimizer.weight_decay,
            },
            {"params": [parameters[name] for name in sorted(vectors)], "weight_decay": 0.0},
        ],
        betas=optimizer.betas,
        eps=optimizer.epsilon,
    )


def _clip(gradients: Weights, largest: float | None) -> float:
    """Scales gradients, in place, to a global norm of at most `largest`; returns the norm before."""
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
    if largest is not None and norm > largest:
        for gradient in gradients.values():
            gradient.mul_(largest / norm)
    return norm


def _gradient(name: str, parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, f"{name} has no gradient"
    return parameter.grad
