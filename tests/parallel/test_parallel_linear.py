import pytest
import torch
from torch.nn import functional as F

from pretrain.parallel.collectives import copy_to_axis, reduce_from_axis
from pretrain.parallel.linear import ColumnParallelLinear, RowParallelLinear, new_parameter, place
from pretrain.parallel.mesh import Axis
from pretrain.parallel.random import Distribution, Normal
from pretrain.parallel.shard import shard_of
from tests.parallel.axes import SINGLE, deviation, model_axis
from tests.worlds import World

_INIT = Normal(0.5)


class _Pair(torch.nn.Module):
    """Two layers as a feed-forward layer uses them."""

    def __init__(self, axis: Axis, bias: Distribution | None) -> None:
        super().__init__()
        self.axis = axis
        self.up = ColumnParallelLinear(6, 8, axis, weight=_INIT, bias=bias)
        self.down = RowParallelLinear(8, 6, axis, weight=_INIT, bias=bias)
        place(self, "pair", seed=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.gelu(self.up(copy_to_axis(x, self.axis)))
        return reduce_from_axis(self.down(inner), self.axis)


def _errors(tp: int, bias: Distribution | None) -> dict[str, float]:
    """Deviations of a split pair from a whole one: output, gradients, weights."""
    whole, split = _Pair(SINGLE, bias), _Pair(model_axis(tp), bias)
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    out = whole(x)
    out.backward(y)
    assert x.grad is not None
    expected, x.grad = x.grad, None
    split_out = split(x)
    split_out.backward(y)
    assert x.grad is not None
    errors = {"output": deviation(split_out, out), "input gradient": deviation(x.grad, expected)}
    for (name, part), full in zip(split.named_parameters(), whole.parameters(), strict=True):
        assert part.grad is not None and full.grad is not None
        errors[name] = float((part - shard_of(part).of(full)).abs().max())
        errors[f"{name} gradient"] = deviation(part.grad, shard_of(part).of(full.grad))
    return errors


@pytest.mark.parametrize("bias", [None, _INIT])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_split_pair_equals_a_whole_one(world: World, tp: int, bias: Distribution | None) -> None:
    for errors in world.run(_errors, tp, bias):
        assert max(errors.values()) < 1e-6, errors


def _marks() -> dict[str, bool]:
    pair = _Pair(model_axis(2), _INIT)
    return {name: getattr(p, "tensor_model_parallel", False) for name, p in pair.named_parameters()}


def test_split_parameters_alone_carry_the_mark_of_deepspeed(world: World) -> None:
    marks = {"up.weight": True, "up.bias": True, "down.weight": True, "down.bias": False}
    assert world.run(_marks) == [marks] * 4


def test_nothing_is_marked_on_one_rank() -> None:
    assert not any(hasattr(p, "tensor_model_parallel") for p in _Pair(SINGLE, _INIT).parameters())


@pytest.mark.parametrize(
    ("rows", "tp", "parts"),
    [
        (8, 2, [(0, 4, 4), (4, 4, 4)]),
        (5, 2, [(0, 3, 3), (3, 2, 3)]),
        (5, 4, [(0, 2, 2), (2, 2, 2), (4, 1, 2), (5, 0, 2)]),
    ],
)
def test_parts_cover_a_parameter_once_and_pad_the_last(rows: int, tp: int, parts: list[tuple[int, int, int]]) -> None:
    found = []
    for rank in range(tp):
        axis = Axis("model", rank, tuple(range(tp)), None)
        parameter = new_parameter((rows, 3), _INIT, {0: axis})
        shard = shard_of(parameter)
        found.append((shard.starts[0], shard.lengths[0], parameter.shape[0]))
    assert found == parts


def test_a_width_that_does_not_divide_is_refused() -> None:
    axis = Axis("model", 0, (0, 1), None)
    with pytest.raises(AssertionError, match="7 output features over 2 ranks"):
        ColumnParallelLinear(4, 7, axis, weight=_INIT)
    with pytest.raises(AssertionError, match="7 input features over 2 ranks"):
        RowParallelLinear(7, 4, axis, weight=_INIT)
