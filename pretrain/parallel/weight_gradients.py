"""When the gradient of a linear layer's weight is computed: in the backward pass, or later.

Backward of y = x W^T has two halves of equal cost: the input's gradient, for which the stages before are waiting, and the
weight's, for which nobody waits until the optimizer steps. Zero-bubble schedules take them apart (Qi et al. 2023, Zero bubble
pipeline parallelism, section 2). `Immediate` leaves both to autograd. `Deferred` lets backward make the input's alone, keeps
what the weight's needs, and makes it when `run_oldest` is called.

Deferred are the weights of linear layers and of the product with a vocabulary table. A bias's gradient is a sum over a tensor
that is at hand, and every other parameter (norms, embeddings, experts) is small or not a product: theirs come in backward.

Cost: from backward to `run_oldest`, a product's input and its output's gradient are kept, also those that a recomputed region
would have made twice.
"""

from abc import ABC, abstractmethod
from collections import deque
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F


class WeightGradients(ABC):
    """How linear layers multiply, so that their weights' gradients come when they should."""

    @abstractmethod
    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """(..., F_in) to x W^T + b, (..., F_out); `weight` (F_out, F_in) is a parameter itself."""


class Immediate(WeightGradients):
    """In the backward pass."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Autograd's own."""
        return F.linear(x, weight, bias)


IMMEDIATE = Immediate()


class Product(NamedTuple):
    """A product whose weight has yet to get its gradient."""

    weight: nn.Parameter
    x: torch.Tensor
    """(..., F_in)"""
    grad: torch.Tensor
    """(..., F_out), of the objective by what the product gave."""


class Deferred(WeightGradients):
    """When `run_oldest` is called: once for every `start_backward`, in the same order."""

    def __init__(self) -> None:
        self._waiting: deque[list[Product]] = deque()

    @property
    def waiting(self) -> int:
        """Backward passes whose weight gradients are still to come."""
        return len(self._waiting)

    def start_backward(self) -> None:
        """The products that backward meets from here on belong to a micro-batch of their own."""
        self._waiting.append([])

    def run_oldest(self) -> list[nn.Parameter]:
        """Adds the weight gradients of the oldest backward pass to `grad`, as autograd does; gives those weights, each once."""
        weights: dict[int, nn.Parameter] = {}
        for weight, x, grad in self._waiting.popleft():
            # A backward pass from a leaf accumulates, and runs whatever hooks there are on the parameter.
            weight.backward(grad.flatten(0, -2).t() @ x.flatten(0, -2))
            weights[id(weight)] = weight
        return list(weights.values())

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The product; its weight waits."""
        assert weight.is_leaf, "a deferred gradient goes to the parameter itself, past all that stands before it"
        assert x.requires_grad or not torch.is_grad_enabled(), "a product whose input gets no gradient has no backward"
        return _DeferredProduct.apply(x, bias, _Place(weight, self))  # type: ignore[return-value]

    def wait_for(self, weight: nn.Parameter, x: torch.Tensor, grad: torch.Tensor) -> None:
        """Notes a product that backward has met."""
        self._waiting[-1].append(Product(weight, x, grad))


class _Place(NamedTuple):
    """Where a weight's gradient goes. It hides the weight from autograd, which would run hooks on it with no gradient."""

    weight: torch.Tensor
    deferred: Deferred


class _DeferredProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, bias: torch.Tensor | None, place: _Place) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        ctx.place = place
        return F.linear(x, place.weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor):  # type: ignore[override]
        (x,), weight = ctx.saved_tensors, ctx.place.weight
        ctx.place.deferred.wait_for(weight, x.detach(), grad)
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad @ weight, grad_bias, None
