"""Recompute: the same bits, and no product that backward does not need."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.model.recompute import Recompute
from tests.model.small_models import FAMILIES, build, random_inputs, settings

_PRODUCTS = ("aten::mm", "aten::addmm", "aten::linear", "aten::bmm")


class Calls(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[func.name().split(".")[0]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def products(self) -> int:
        return sum(self.names[name] for name in _PRODUCTS)


def _gradients(family: str, recompute: Recompute, **changes: Any) -> tuple[dict[str, torch.Tensor], Calls]:
    model = settings(family, **changes)
    stack, inputs = build(model, recompute=recompute), random_inputs(model)
    with Calls() as calls:
        logits = stack(inputs)
        (logits * torch.linspace(-1, 1, logits.numel()).view(logits.shape)).sum().backward()
    return {name: p.grad for name, p in stack.named_parameters() if p.grad is not None}, calls


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_computed_again_is_the_same_to_the_bit(family: str, mode: Any) -> None:
    plain, _ = _gradients(family, Recompute())
    again, _ = _gradients(family, Recompute.of(mode))
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_a_feed_forward_layer_change_no_gradient(family: str, mode: Any) -> None:
    """36 tokens in tiles of 7: the last is smaller, and most hold parts of two sequences."""
    plain, _ = _gradients(family, Recompute())
    tiled, _ = _gradients(family, Recompute.of(mode, feed_forward_tile_tokens=7))
    assert plain.keys() == tiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(tiled[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max()))


def test_a_selective_block_runs_no_product_again_but_those_of_attention() -> None:
    _, plain = _gradients("llama", Recompute())
    _, selective = _gradients("llama", Recompute.of("selective"))
    assert selective.products == plain.products
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert (plain.names[attention], selective.names[attention]) == (2, 4)
    assert selective.names["aten::silu"] == 2 * plain.names["aten::silu"]


def test_a_full_block_runs_every_product_again_but_the_last() -> None:
    """Of query, key-value, output, gate, up and down, in each of two blocks."""
    _, plain = _gradients("llama", Recompute())
    _, full = _gradients("llama", Recompute.of("full"))
    assert full.products == plain.products + 2 * 5


def test_the_same_values_are_dropped_again() -> None:
    """Without a rate the gradients are others, so the equality above says something of dropout."""
    dropped, _ = _gradients("gpt with dropout", Recompute.of("full"))
    kept, _ = _gradients("gpt with dropout", Recompute.of("full"), dropout=0.0, attention_dropout=0.0)
    assert not torch.equal(dropped["embedding.weight"], kept["embedding.weight"])


def test_nothing_is_computed_again_without_gradients() -> None:
    model = settings("llama")
    stack, inputs = build(model, recompute=Recompute.of("full", 5)), random_inputs(model)
    with Calls() as calls, torch.no_grad():
        stack(inputs)
    with Calls() as plain, torch.no_grad():
        build(model)(inputs)
    assert calls.names["aten::silu"] == 2 * -(-36 // 5)
    assert calls.names["aten::_scaled_dot_product_flash_attention_for_cpu"] == 2
    assert plain.names["aten::silu"] == 2
