"""Seeded faults of experts: routing, exchange, balance, and what DeepSpeed is told of them."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from pretrain.engine.objective import LossSums
from pretrain.model import experts, moe, router
from pretrain.parallel import collectives, expert_exchange


def expert_weights_without_copy() -> AbstractContextManager[Any]:
    """Each tensor rank keeps the gradient of its own addend."""
    return patch.object(moe, "copy_to_axis", lambda tensor, axis: tensor)


def routers_gradient_on_every_rank() -> AbstractContextManager[Any]:
    """What every tensor rank does alike is summed over them."""
    return patch.object(router, "gradient_once", lambda tensor, axis: tensor)


def auxiliary_loss_on_every_rank() -> AbstractContextManager[Any]:
    """The losses of balance are made of scores that were copied."""
    original = router.Router._auxiliary

    def copied(self: router.Router, logits: torch.Tensor, scores: torch.Tensor, *rest: torch.Tensor) -> Any:
        logits, scores = (collectives.copy_to_axis(tensor, self.axis) for tensor in (logits, scores))
        return original(self, logits, scores, *rest)

    return patch.object(router.Router, "_auxiliary", copied)


def rows_return_to_the_wrong_place() -> AbstractContextManager[Any]:
    """The permutation is applied once more in place of its inverse."""
    original = expert_exchange.ExpertExchange.of

    def same_way(*arguments: Any) -> Any:
        exchange = original(*arguments)
        return replace(exchange, places=exchange.order)

    return patch.object(expert_exchange.ExpertExchange, "of", staticmethod(same_way))


def experts_averaged_over_their_replicas() -> AbstractContextManager[Any]:
    """Of two data ranks with one replica: the gradient is not divided by the data axis."""
    original: Callable[..., Any] = experts._GroupedProduct.backward

    def doubled(ctx: Any, grad: torch.Tensor) -> Any:
        rows, weight, _ = original(ctx, grad)
        return rows, 2 * weight, None

    return patch.object(experts._GroupedProduct, "backward", staticmethod(doubled))


@contextlib.contextmanager
def experts_are_ordinary_parameters() -> Iterator[None]:
    """DeepSpeed is not told, and averages different experts."""
    from pretrain.engine import sequential

    with (
        patch.object(sequential, "mark_experts", lambda *arguments: None),
        patch.object(sequential, "split_groups", lambda optimizer: optimizer),
    ):
        yield


def bias_follows_the_load_of_one_rank() -> AbstractContextManager[Any]:
    """Loads of the other data ranks are left out."""
    original = LossSums.add_experts

    def first_alone(self: LossSums, end: dict[str, torch.Tensor]) -> None:
        keep = 1 if dist.get_rank() == 0 else 0
        original(self, {**end, "loads": end["loads"] * keep})

    return patch.object(LossSums, "add_experts", first_alone)


def last_tokens_go_first() -> AbstractContextManager[Any]:
    """A capacity drops the first tokens of a sequence."""
    original = router.Router._within_capacity

    def backwards(self: router.Router, chosen: torch.Tensor, length: int) -> torch.Tensor:
        return original(self, chosen.flip(1), length).flip(1)

    return patch.object(router.Router, "_within_capacity", backwards)


def padding_takes_places() -> AbstractContextManager[Any]:
    """Padding counts in loads and losses."""
    original = router.Router.forward

    def all_real(self: router.Router, entered: torch.Tensor, documents: torch.Tensor) -> Any:
        return original(self, entered, documents.clamp_min(0))

    return patch.object(router.Router, "forward", all_real)


@contextlib.contextmanager
def buffers_are_lent_by_index() -> Iterator[None]:
    """DeepSpeed's receive buffers as they are: a gradient may be read into integers."""
    from deepspeed.runtime.pipe.engine import PipelineEngine

    from pretrain.engine.joint_backward import JointBackwardEngine

    original = PipelineEngine._allocate_or_extend_buffers
    with patch.object(JointBackwardEngine, "_allocate_or_extend_buffers", original):
        yield
