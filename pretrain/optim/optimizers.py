"""AdamW over the parameters of one rank, grouped as ZeRO takes them.

Weight decay (Loshchilov and Hutter 2019, decoupled) applies to matrices alone: on a bias or a norm's gain it takes no capacity
away and only pulls the function towards zero. The update is torch's fused kernel: it needs no compiler, unlike DeepSpeed's
own Adam, and makes one pass over memory.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pretrain.optim.settings import OptimizerSettings


def build_adamw(parameters: Iterable[nn.Parameter], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW with decay for matrices and none for vectors; at its peak learning rate, which the schedule replaces.

    Must be called before ZeRO-3 partitions the parameters, for then each of them is flat. A group without parameters is left out:
    ZeRO flattens each group and cannot flatten nothing.
    """
    return torch.optim.AdamW(
        parameter_groups(parameters, settings.weight_decay),
        lr=settings.peak_lr,
        betas=settings.betas,
        eps=settings.epsilon,
        fused=True,
    )


def parameter_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """The trained parameters, matrices first, each group with its decay; a parameter that is named twice (tied) counts once."""
    trained = list({id(p): p for p in parameters if p.requires_grad}.values())
    matrices = [p for p in trained if not _is_vector(p)]
    vectors = [p for p in trained if _is_vector(p)]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _is_vector(parameter: nn.Parameter) -> bool:
    """Whether it is a vector, or one for each expert (marked `stacked`)."""
    return parameter.ndim - int(getattr(parameter, "stacked", False)) < 2
