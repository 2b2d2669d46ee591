"""Router and experts of one process, against what the papers say, and against each other."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pretrain.model.experts import Experts, _grouped_mm, grouped_product
from pretrain.model.moe import MixtureOfExperts, expert_layers
from pretrain.model.router import Router, Routing, updated_bias
from pretrain.model.settings import ModelSettings, MoESettings
from pretrain.parallel.linear import place
from tests.model.small_models import SINGLE, build, random_inputs, settings

SEQUENCES, LENGTH, PADDING = 3, 10, 3


def mixture(family: str = "llama", **changes: Any) -> ModelSettings:
    moe = {"num_experts": 4, "experts_per_token": 2, "d_ff": 24, **changes}
    return settings(family, moe=MoESettings(**moe))


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S, D) and documents (B, S), the last of which end in padding."""
    documents = torch.zeros(SEQUENCES, LENGTH, dtype=torch.long)
    documents[-1, -PADDING:] = -1
    return torch.randn(SEQUENCES, LENGTH, 32, generator=torch.Generator().manual_seed(0)), documents


def router(**changes: Any) -> Router:
    model = mixture(**changes)
    assert model.moe is not None
    made = Router(model, model.moe, SINGLE, "layers.0")
    place(made, "layers.0.feed_forward.router", 7)
    return made


def route(**changes: Any) -> Routing:
    return router(**changes)(*inputs())


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_weights_are_the_scores_of_the_best_experts(score: str):
    made, (x, _) = router(score=score, normalize_weights=False), inputs()
    logits = x @ made.weight.T
    scores = logits.softmax(-1) if score == "softmax" else logits.sigmoid()
    best = scores.topk(2, -1)
    routing = made(*inputs())
    assert torch.equal(routing.choice, best.indices)
    torch.testing.assert_close(routing.weights, best.values)


def test_normalized_softmax_weights_are_the_softmax_of_the_chosen_logits():
    """Jiang et al. 2024, section 2.1, writes it so."""
    made, (x, _) = router(), inputs()
    torch.testing.assert_close(made(*inputs()).weights, (x @ made.weight.T).topk(2, -1).values.softmax(-1))


def test_routed_scale_stretches_the_weights_alone():
    plain, scaled = route(), route(routed_scale=2.5)
    torch.testing.assert_close(scaled.weights, 2.5 * plain.weights)
    assert torch.equal(scaled.choice, plain.choice)


def test_a_balancing_bias_chooses_and_does_not_weigh():
    made = router(balance="bias", normalize_weights=False)
    assert made.bias is not None
    made.bias += torch.tensor([10.0, 0.0, 0.0, 0.0])
    routing = made(*inputs())
    scores = (inputs()[0] @ made.weight.T).softmax(-1)
    assert bool((routing.choice[..., 0] == 0).all())
    torch.testing.assert_close(routing.weights, scores.gather(-1, routing.choice))


def test_the_bias_moves_towards_experts_with_less_than_the_mean_load():
    moved = updated_bias(torch.zeros(4), torch.tensor([10, 30, 20, 20]), 0.5)
    assert moved.tolist() == [0.5, -0.5, 0.0, 0.0]


def test_the_bias_stays_fp32_in_a_bf16_model():
    made = router(balance="bias").to(torch.bfloat16)
    assert made.bias is not None and made.bias.dtype == torch.float32
    assert made(inputs()[0].bfloat16(), inputs()[1]).weights.dtype == torch.float32


def test_padding_is_sent_nowhere_and_counted_nowhere():
    routing = route(router_z_loss=0.1)
    assert not bool(routing.kept[-1, -PADDING:].any()) and bool(routing.kept[:-1].all())
    assert int(routing.load[:-1].sum()) == 2 * (SEQUENCES * LENGTH - PADDING)
    (x, documents), made = inputs(), router(router_z_loss=0.1)
    other = made(torch.where((documents < 0).unsqueeze(-1), 100.0, x), documents)
    assert routing.auxiliary is not None and torch.equal(routing.auxiliary, other.auxiliary)


def test_a_sequence_of_padding_alone_has_no_loss():
    x, documents = inputs()
    documents[1] = -1
    auxiliary = router(router_z_loss=0.1)(x, documents).auxiliary
    assert auxiliary is not None and float(auxiliary.detach()[1]) == 0.0 and bool((auxiliary[[0, 2]] > 0).all())


def test_equal_loads_and_scores_have_the_least_auxiliary_loss():
    """Fedus et al. 2021, section 2.2: the uniform router's loss is the coefficient."""
    made = router(auxiliary_loss=0.25)
    torch.nn.init.zeros_(made.weight)
    auxiliary = made(*inputs()).auxiliary
    torch.testing.assert_close(auxiliary, torch.full((SEQUENCES,), 0.25))


def test_the_z_loss_is_the_mean_square_of_log_sum_exp():
    made, (x, documents) = router(balance="none", router_z_loss=0.5), inputs()
    square = (x @ made.weight.T).logsumexp(-1).square()
    means = [float(square.detach()[b][documents[b] >= 0].mean()) for b in range(SEQUENCES)]
    torch.testing.assert_close(made(x, documents).auxiliary, 0.5 * torch.tensor(means))


@pytest.mark.parametrize("factor", [0.5, 0.7, 1.0])
def test_an_expert_takes_the_first_tokens_of_each_sequence(factor: float):
    routing, free = route(capacity_factor=factor), route()
    capacity = math.ceil(factor * 2 * LENGTH / 4)
    for b in range(SEQUENCES):
        taken = [0] * 4
        for s in range(LENGTH):
            for choice, expert in enumerate(routing.choice[b, s].tolist()):
                wanted = bool(free.kept[b, s, choice]) and taken[expert] < capacity
                assert bool(routing.kept[b, s, choice]) == wanted
                taken[expert] += wanted
    assert int(routing.load[-1]) == int(free.kept.sum() - routing.kept.sum()) > 0
    assert torch.equal(routing.load[:-1], free.load[:-1])


@pytest.mark.parametrize("family", ["llama", "gpt", "transformer"])
def test_one_expert_that_takes_all_is_the_dense_layer(family: str):
    model = settings(family, moe=MoESettings(num_experts=1, experts_per_token=1, d_ff=48, balance="none"))
    layer, (x, documents) = MixtureOfExperts(model, SINGLE, 2, "layers.0"), inputs()
    place(layer, "layers.0.feed_forward", 7)
    documents = documents.clamp_min(0)
    experts, y = layer.experts, x
    inner = _linear(experts.up, y)
    activation = {"llama": F.silu, "gpt": lambda t: F.gelu(t, approximate="tanh"), "transformer": F.relu}[family]
    inner = activation(inner) if experts.gate is None else activation(_linear(experts.gate, y)) * inner
    torch.testing.assert_close(layer(x, documents)[0], _linear(experts.down, inner))


def _linear(stacked: Any, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, stacked.weight[0], None if stacked.bias is None else stacked.bias[0])


def test_equal_experts_make_the_layer_dense():
    """Whatever the router does, weights that sum to one leave the experts' common output."""
    model, (x, documents) = mixture("gpt", num_experts=4), inputs()
    layer = MixtureOfExperts(model, SINGLE, 2, "layers.0")
    place(layer, "layers.0.feed_forward", 7)
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter))
    out = layer(x, documents.clamp_min(0))[0]
    single = _linear(layer.experts.down, F.gelu(_linear(layer.experts.up, x), approximate="tanh"))
    torch.testing.assert_close(out, single)


def test_grouped_products_are_those_of_each_expert_forward_and_backward():
    counts = [3, 0, 5, 1]
    rows = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: grouped_product(a, b, counts), (rows, weight))
    parts = [F.linear(part, matrix) for part, matrix in zip(rows.split(counts), weight, strict=True)]
    torch.testing.assert_close(grouped_product(rows, weight, counts), torch.cat(parts))


def test_experts_without_a_row_have_a_gradient_of_zeros():
    model = mixture("gpt")
    assert model.moe is not None
    experts = Experts(model, model.moe, SINGLE, 2)
    place(experts, "layers.0.feed_forward.experts", 7)
    experts(torch.randn(4, 32), [4, 0, 0, 0]).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None and not bool(parameter.grad[1:].any()) and bool(parameter.grad[0].any())


def test_layers_with_experts_are_named_in_their_order():
    first_dense = MoESettings(num_experts=4, experts_per_token=2, d_ff=24, first_dense_layers=1)
    assert expert_layers(settings("llama", num_layers=3, moe=first_dense)) == ("layers.1", "layers.2")
    both = ("encoder.layers.1", "decoder.layers.1")
    assert expert_layers(settings("transformer", moe=first_dense)) == both
    assert expert_layers(settings("llama")) == ()


@pytest.mark.parametrize("family", ["llama", "palm", "transformer"])
def test_a_model_leaves_the_loads_and_losses_of_all_its_layers(family: str):
    model = mixture(family, router_z_loss=0.1)
    stack = build(model)
    end = stack.end(random_inputs(model))
    assert end["loads"].shape == (len(expert_layers(model)), 5)
    assert set(end) == {"logits", "loads", "auxiliary"}
    end["auxiliary"].sum().backward()
    routed = {name for name, p in stack.named_parameters() if name.endswith("router.weight") and p.grad is not None}
    assert len(routed) == len(expert_layers(model))


@pytest.mark.skipif(_grouped_mm is None, reason="this torch has no grouped product")
def test_the_kernel_of_gpus_is_called_as_the_loop_is():
    """It runs on a CPU too, slower than the loop."""
    counts = [3, 0, 5, 1]
    rows, weight = torch.randn(9, 16).bfloat16().requires_grad_(), torch.randn(4, 8, 16).bfloat16().requires_grad_()
    loop = grouped_product(rows, weight, counts)
    assert _grouped_mm is not None
    kernel = _grouped_mm(rows, weight.transpose(1, 2), offs=torch.tensor(counts).cumsum(0, dtype=torch.int32))
    torch.testing.assert_close(kernel, loop)
    upstream = torch.randn_like(loop)
    for a, b in zip(*(torch.autograd.grad(out, (rows, weight), upstream) for out in (kernel, loop)), strict=True):
        torch.testing.assert_close(a, b)
