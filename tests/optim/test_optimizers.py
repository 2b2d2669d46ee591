import pytest
import torch
from torch import nn

from pretrain.optim.optimizers import build_adamw
from pretrain.optim.settings import OptimizerSettings


def test_matrices_are_decayed_and_vectors_are_not() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = build_adamw(model.parameters(), OptimizerSettings(peak_lr=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_a_step_is_adamw_of_the_paper() -> None:
    weight = nn.Parameter(torch.tensor([[2.0, -1.0]]))
    settings = OptimizerSettings(peak_lr=0.01, betas=(0.9, 0.95), epsilon=1e-6, weight_decay=0.1)
    optimizer = build_adamw([weight], settings)
    expected, m, v = weight.detach().double().clone(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step in range(1, 4):
        gradient = torch.tensor([[0.3 * step, -0.2]], dtype=torch.float64)
        weight.grad = gradient.float()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        update = (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-6)
        expected = expected - 0.01 * 0.1 * expected - 0.01 * update
    torch.testing.assert_close(weight.detach(), expected.float())


def test_tied_and_frozen_parameters_are_counted_once_and_never() -> None:
    tied, frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3), requires_grad=False)
    optimizer = build_adamw([tied, tied, frozen], OptimizerSettings())
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(tied)]]


@pytest.mark.parametrize("shape", [(3,), (3, 3)])
def test_a_group_without_parameters_is_left_out(shape: tuple[int, ...]) -> None:
    optimizer = build_adamw([nn.Parameter(torch.ones(shape))], OptimizerSettings())
    assert len(optimizer.param_groups) == 1
