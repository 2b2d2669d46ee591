import torch

from pretrain.parallel.collectives import all_reduce, copy_to_axis, once_over_axis, reduce_from_axis
from tests.parallel.axes import SINGLE, model_axis
from tests.worlds import World


def test_an_axis_of_one_returns_its_input() -> None:
    x = torch.ones(3, requires_grad=True)
    assert copy_to_axis(x, SINGLE) is x
    assert reduce_from_axis(x, SINGLE) is x
    assert once_over_axis(x, SINGLE) is x
    assert all_reduce(x, SINGLE) is x


def _copy(tp: int) -> tuple[torch.Tensor, torch.Tensor]:
    axis = model_axis(tp)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    y = copy_to_axis(x, axis)
    (y * (axis.rank + 1)).sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


def test_copy_is_the_identity_forward_and_a_sum_backward(world: World) -> None:
    for tp in (2, 4):
        for value, grad in world.run(_copy, tp):
            assert value.tolist() == [1.0, 2.0]
            assert grad.tolist() == [sum(range(1, tp + 1))] * 2


def _reduce(tp: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axis = model_axis(tp)
    x = torch.full((2,), float(axis.rank + 1), requires_grad=True)
    before = x.detach().clone()
    y = reduce_from_axis(x, axis)
    y.backward(torch.tensor([3.0, 5.0]))
    assert x.grad is not None
    return y.detach(), x.grad, x.detach() - before


def test_reduce_is_a_sum_forward_and_the_identity_backward(world: World) -> None:
    for tp in (2, 4):
        for value, grad, change in world.run(_reduce, tp):
            assert value.tolist() == [sum(range(1, tp + 1))] * 2
            assert grad.tolist() == [3.0, 5.0]
            assert change.tolist() == [0.0, 0.0], "the input of a reduction is not written to"


def _once(tp: int) -> tuple[torch.Tensor, torch.Tensor]:
    axis = model_axis(tp)
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    total = reduce_from_axis(once_over_axis(x, axis), axis)
    total.backward(torch.tensor([3.0, 5.0]))
    assert x.grad is not None
    return total.detach(), x.grad


def test_an_addend_counts_once_and_its_gradient_is_whole_on_every_rank(world: World) -> None:
    for tp in (2, 4):
        for value, grad in world.run(_once, tp):
            assert value.tolist() == [1.0, 2.0]
            assert grad.tolist() == [3.0, 5.0]


def _shared_gradient() -> tuple[list[float], list[float]]:
    axis = model_axis(2)
    a, b = (torch.zeros(2, requires_grad=True) for _ in range(2))
    # Both addends get the very same gradient tensor from autograd.
    (copy_to_axis(a, axis) + b).backward(torch.tensor([1.0, 2.0]))
    assert a.grad is not None and b.grad is not None
    return a.grad.tolist(), b.grad.tolist()


def test_the_sum_of_gradients_leaves_a_shared_gradient_alone(world: World) -> None:
    for summed, untouched in world.run(_shared_gradient):
        assert summed == [2.0, 4.0]
        assert untouched == [1.0, 2.0]


def _bf16() -> list[float]:
    x = torch.full((3,), 1.5, dtype=torch.bfloat16)
    return all_reduce(x, model_axis(4)).tolist()


def test_bf16_is_summed(world: World) -> None:
    assert world.run(_bf16) == [[6.0] * 3] * 4
