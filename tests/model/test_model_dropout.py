import math
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pretrain.model.dropout import Dropout, KeepAll, build_dropout
from pretrain.model.layers import LayerStack, build_layers
from tests.model.small_models import FAMILIES, SINGLE, build, random_inputs, settings

_DROPPING = [name for name in FAMILIES if "dropout" in name]


def test_nothing_stands_where_nothing_is_dropped() -> None:
    assert isinstance(build_dropout(0.0, 0, "x", SINGLE.stream), KeepAll)
    assert not any(isinstance(module, Dropout) for module in build(settings("gpt")).modules())


def test_dropout_keeps_its_share_and_the_expectation() -> None:
    drop = Dropout(0.25, seed=1, name="here", stream=SINGLE.stream)
    x = torch.ones(50, 40, 64)
    y = drop(x, torch.arange(50))
    kept = y != 0
    assert abs(kept.double().mean() - 0.75) < 5 * math.sqrt(0.75 * 0.25 / y.numel())
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / 0.75), rtol=1e-4, atol=0)


def test_the_gradient_passes_where_the_value_did() -> None:
    drop = Dropout(0.5, seed=1, name="here", stream=SINGLE.stream)
    x = torch.randn(3, 4, 10, requires_grad=True)
    y = drop(x, torch.arange(3))
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y / x).detach())


def test_a_mask_depends_on_seed_place_and_sample_alone() -> None:
    x = torch.ones(4, 5, 64)
    samples = torch.tensor([7, 8, 9, 10])
    here = Dropout(0.5, seed=1, name="here", stream=SINGLE.stream)
    assert torch.equal(here(x, samples), here(x, samples)), "nothing is consumed"
    assert torch.equal(here(x[1:3], samples[1:3]), here(x, samples)[1:3]), "whatever the micro-batch"
    assert torch.equal(here(x, samples.flip(0)), here(x, samples).flip(0))
    for other in (
        Dropout(0.5, seed=2, name="here", stream=SINGLE.stream),
        Dropout(0.5, seed=1, name="there", stream=SINGLE.stream),
    ):
        assert 0.3 < ((other(x, samples) != 0) == (here(x, samples) != 0)).double().mean() < 0.7
    assert 0.3 < ((here(x, samples + 4) != 0) == (here(x, samples) != 0)).double().mean() < 0.7


@pytest.mark.parametrize("family", _DROPPING)
def test_evaluation_drops_nothing(family: str) -> None:
    model = settings(family)
    inputs = random_inputs(model)
    stack = build(model)
    trained, evaluated = stack(inputs), stack.eval()(inputs)
    without = build(settings(family, dropout=0.0, attention_dropout=0.0))(inputs)
    torch.testing.assert_close(evaluated, without, atol=2e-5, rtol=1e-5)
    assert (trained - evaluated).abs().max() > 0.05


@pytest.mark.parametrize("family", _DROPPING)
def test_a_sample_loses_the_same_values_in_any_batch_and_in_any_stage(family: str) -> None:
    """Layers are built afresh and one by one, as each pipeline stage does; the batch is cut in two."""
    model = settings(family)
    inputs = random_inputs(model)
    expected = LayerStack(build_layers(model, SINGLE, seed=7))(inputs)
    rows = []
    for part in (slice(0, 1), slice(1, 3)):
        carry = {name: inputs[name][part] for name in LayerStack(build_layers(model, SINGLE, seed=7)).fields}
        modules: dict[str, Any] = {}
        for spec in build_layers(model, SINGLE, seed=7):
            key = spec.tied_key or spec.name
            carry = spec.run(modules.setdefault(key, spec.build()), carry)
        rows.append(carry["logits"])
    torch.testing.assert_close(torch.cat(rows), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", _DROPPING)
def test_recomputation_drops_the_same_values(family: str) -> None:
    model = settings(family)
    inputs = random_inputs(model)
    gradients = []
    for recompute in (False, True):
        stack = build(model)
        carry = {name: inputs[name] for name in stack.fields}
        for spec, module in stack.steps:
            if recompute and spec.name.rpartition(".")[0].endswith("layers"):
                carry = checkpoint(module, carry, use_reentrant=False)
            else:
                carry = spec.run(module, carry)
        carry["logits"].logsumexp(-1).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in stack.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)
