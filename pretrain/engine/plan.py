"""EnginePlan: what an engine is built from, resolved once from the run config."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pretrain.engine.settings import TrainSettings
from pretrain.model.layers import LayerSpec
from pretrain.parallel.weight_gradients import WeightGradients


@dataclass(frozen=True)
class EnginePlan:
    """The model as a list, the optimizer, the schedule and DeepSpeed's config."""

    specs: Sequence[LayerSpec]
    boundaries: Sequence[tuple[str, ...]]
    """Names in the carry before each layer and after the last."""
    vocab_size: int
    expert_layers: tuple[str, ...]
    """Names of the layers with experts."""
    num_experts: int
    """Routed experts of a layer; 0 without any."""
    num_parameters: int
    train: TrainSettings
    zero_stage: int
    clip_norm: float | None
    deepspeed: dict[str, Any]
    build_optimizer: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]
    lr: Callable[[int], float]
    """Learning rate of the n-th attempt, counted from 0."""
    weight_gradients: WeightGradients
    """What the layers multiply with."""
    is_traced: Callable[[int], bool]
    """Whether the n-th attempt, counted from 1, is one whose bubble is measured: it is logged."""
