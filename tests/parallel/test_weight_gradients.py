"""Deferred weight gradients are autograd's, later: per backward pass, once each, also where regions are recomputed."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pretrain.parallel.weight_gradients import IMMEDIATE, Deferred, WeightGradients


class TwoProducts(nn.Module):
    """A tied weight used twice, an other one with a bias, between them what is not deferred."""

    def __init__(self, gradients: WeightGradients) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tied = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        self.other = nn.Parameter(torch.randn(6, 6, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
        self.gain = nn.Parameter(torch.ones(6, dtype=torch.float64))
        self.gradients = gradients

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., 6) to the same."""
        h = F.gelu(self.gradients.linear(x, self.tied)) * self.gain
        h = h + self.gradients.linear(h, self.other, self.bias)
        return self.gradients.linear(h, self.tied)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 6, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def expected() -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    model, inputs = TwoProducts(IMMEDIATE), batches()
    for x in inputs:
        model(x).sin().sum().backward()
    return _gradients(model), [x.grad for x in inputs if x.grad is not None]


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_deferred_gradients_are_autograds(recomputed: bool) -> None:
    deferred = Deferred()
    model, inputs = TwoProducts(deferred), batches()
    for x in inputs:
        y = checkpoint(model, x, use_reentrant=False) if recomputed else model(x)
        assert isinstance(y, torch.Tensor)
        deferred.start_backward()
        y.sin().sum().backward()
    wanted, of_inputs = expected()
    assert set(_gradients(model)) == {"bias", "gain"}, "only what is cheap comes in backward"
    assert deferred.waiting == 3
    for left in (2, 1, 0):
        assert {id(weight) for weight in deferred.run_oldest()} == {id(model.tied), id(model.other)}
        assert deferred.waiting == left
    for name, gradient in _gradients(model).items():
        assert torch.allclose(gradient, wanted[name], rtol=1e-12, atol=1e-12), name
    for x, wanted_of_input in zip(inputs, of_inputs, strict=True):
        assert x.grad is not None and torch.equal(x.grad, wanted_of_input)


def test_a_hook_of_a_parameter_sees_the_gradient_when_it_comes() -> None:
    deferred = Deferred()
    model, seen = TwoProducts(deferred), []
    model.other.register_hook(seen.append)
    deferred.start_backward()
    model(batches()[0]).sum().backward()
    assert not seen
    deferred.run_oldest()
    assert len(seen) == 1


def test_without_gradients_nothing_waits() -> None:
    deferred = Deferred()
    with torch.no_grad():
        TwoProducts(deferred)(batches()[0])
    assert deferred.waiting == 0


def test_an_input_without_a_gradient_is_told() -> None:
    deferred = Deferred()
    with pytest.raises(AssertionError, match="no backward"):
        deferred.linear(batches()[0].detach(), TwoProducts(deferred).tied)
