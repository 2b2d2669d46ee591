"""Seeded faults of split streams, recomputation and tiles, for mutations.py."""

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch

from pretrain.model import attention, dropout
from pretrain.parallel import collectives, sequence, tiled_cross_entropy
from pretrain.parallel.mesh import Axis
from tests.layouts.patching import replaced


def shared_weight_gradient_stays_partial() -> AbstractContextManager[Any]:
    return patch.object(sequence.SplitStream, "shared", lambda self, weight: weight)


def scatter_takes_a_slice() -> AbstractContextManager[Any]:
    def forward(ctx: Any, tensor: torch.Tensor, axis: Any) -> torch.Tensor:
        ctx.axis = axis
        return tensor.chunk(axis.size, 1)[axis.rank].clone()

    return patch.object(collectives._ScatterSequence, "forward", staticmethod(forward))


def gather_backward_takes_a_slice() -> AbstractContextManager[Any]:
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.chunk(ctx.axis.size, 1)[ctx.axis.rank].clone(), None

    return patch.object(collectives._GatherSequence, "backward", staticmethod(backward))


def whole_gradient_on_every_rank() -> AbstractContextManager[Any]:
    return patch.object(attention, "gradient_once", lambda tensor, axis: tensor)


def recompute_drops_others() -> AbstractContextManager[Any]:
    def change(keep_mask: Any) -> Any:
        def drawn(key: int, *rest: Any, **more: Any) -> Any:
            in_backward = torch._C._current_graph_task_id() >= 0
            return keep_mask(key + in_backward, *rest, **more)

        return drawn

    return replaced(dropout, "keep_mask", change)


def tiles_see_the_own_columns_alone() -> AbstractContextManager[Any]:
    def change(combine: Any) -> Any:
        alone = Axis.single("model")
        return lambda sums, targets, columns: combine(sums, targets, columns._replace(axis=alone))

    return replaced(tiled_cross_entropy, "combine", change)
