"""Norms, feed-forward layers, residual streams and initial weights against their formulas."""

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from pretrain.model.feed_forward import build_feed_forward
from pretrain.model.layers import LayerStack, build_layers
from pretrain.model.masks import Mask
from pretrain.model.norm import Norm
from pretrain.parallel.linear import place
from tests.model.small_models import SINGLE, build, random_inputs, settings


def _norm(**changes: Any) -> Norm:
    norm = Norm(settings("gpt", **changes), SINGLE.stream)
    place(norm, "norm", seed=0)
    for parameter in norm.parameters():
        parameter.data += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return norm


@pytest.mark.parametrize("biases", [("norm",), ()])
def test_layer_norm_is_the_formula(biases: tuple[str, ...]) -> None:
    norm = _norm(biases=biases, norm_epsilon=0.1)
    x = torch.randn(2, 3, 32) + 1
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected if norm.bias is None else expected + norm.bias)
    assert (norm.bias is None) == (not biases)


def test_rms_norm_is_the_formula_and_has_no_bias() -> None:
    norm = _norm(norm="rmsnorm", norm_epsilon=0.1)
    x = torch.randn(2, 3, 32) + 1
    torch.testing.assert_close(norm(x), x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight)
    assert norm.bias is None


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norms_of_a_bf16_stream_are_computed_in_fp32(kind: str) -> None:
    """In bf16 the squares of 4,096 values near 300 would sum to something else altogether."""
    norm = _norm(norm=kind, d_model=4096).to(torch.bfloat16)
    x = (300 + torch.randn(2, 2, 4096)).bfloat16()
    exact = torch.nn.Module.double(_norm(norm=kind, d_model=4096).to(torch.bfloat16))(x.double())
    torch.testing.assert_close(norm(x).double(), exact, atol=0.04, rtol=2**-7)


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda up, gate: up.clamp(min=0)),
        ("gelu", lambda up, gate: up * 0.5 * (1 + torch.erf(up / math.sqrt(2)))),
        ("gelu_tanh", lambda up, gate: up * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))),
        ("swiglu", lambda up, gate: gate * torch.sigmoid(gate) * up),
    ],
)
@pytest.mark.parametrize("biases", [("feed_forward",), ()])
def test_feed_forward_is_the_formula(activation: str, formula: Any, biases: tuple[str, ...]) -> None:
    layer = build_feed_forward(settings("gpt", activation=activation, biases=biases), SINGLE, 2)
    place(layer, "feed_forward", seed=0)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    for name, parameter in parameters.items():
        if name.endswith("bias"):
            parameter.normal_(generator=torch.Generator().manual_seed(3))
    assert any(name.endswith("bias") for name in parameters) == bool(biases)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"))

    x = torch.randn(2, 3, 32)
    gate = linear("gate", x) if activation == "swiglu" else x
    torch.testing.assert_close(layer(x), linear("down", formula(linear("up", x), gate)))


def _hidden_behind_first_block(**changes: Any) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """The stream before and behind the first block of a one-layer model, and the block."""
    model = settings("gpt", num_layers=1, **changes)
    stack = build(model)
    streams: list[torch.Tensor] = []
    block = stack.get_submodule("layers.0")
    block.register_forward_hook(lambda _m, given, carry: streams.extend((given[0]["hidden"], carry["hidden"])))
    inputs = random_inputs(model)
    inputs["documents"] = torch.zeros_like(inputs["documents"])
    stack(inputs)
    return streams[0], streams[1], block


def _branches(block: torch.nn.Module) -> tuple[Any, Any]:
    attention, feed_forward = block.get_submodule("attention"), block.get_submodule("feed_forward")
    return lambda h: attention(h, h, Mask(causal=True)), feed_forward


def test_a_pre_norm_block_adds_branches_of_the_normed_stream() -> None:
    x, found, block = _hidden_behind_first_block()
    attention, feed_forward = _branches(block)
    x = x + attention(block.get_submodule("attention_norm")(x))
    torch.testing.assert_close(found, x + feed_forward(block.get_submodule("feed_forward_norm")(x)))


def test_a_post_norm_block_norms_the_sum() -> None:
    x, found, block = _hidden_behind_first_block(norm_position="post")
    attention, feed_forward = _branches(block)
    x = block.get_submodule("attention_norm")(x + attention(x))
    torch.testing.assert_close(found, block.get_submodule("feed_forward_norm")(x + feed_forward(x)))


def test_a_parallel_block_feeds_both_branches_from_one_norm() -> None:
    x, found, block = _hidden_behind_first_block(block="parallel")
    attention, feed_forward = _branches(block)
    normed = block.get_submodule("norm")(x)
    torch.testing.assert_close(found, x + attention(normed) + feed_forward(normed))


def test_embeddings_and_logits_are_scaled_where_the_settings_say() -> None:
    plain = build(settings("gpt", positions="none", num_layers=1))
    scaled = build(settings("gpt", positions="none", num_layers=1, logit_scale="rsqrt_d_model"))
    inputs = random_inputs(settings("gpt"))
    torch.testing.assert_close(scaled(inputs), plain(inputs) / math.sqrt(32), atol=1e-6, rtol=1e-5)
    specs = {spec.name: spec for spec in build_layers(settings("gpt", embedding_scale="sqrt_d_model"), SINGLE, seed=7)}
    table = specs["embedding"].build()
    carry = {"tokens": inputs["tokens"]}
    weight = next(iter(table.parameters()))
    torch.testing.assert_close(table(carry)["hidden"], weight[inputs["tokens"]] * math.sqrt(32))


def _std(stack: LayerStack, name: str) -> float:
    return float(stack.get_parameter(name).detach().std())


def _wide(**changes: Any) -> LayerStack:
    sizes = {"d_model": 128, "d_ff": 256, "vocab_size": 512, "max_sequence_length": 256, "num_layers": 2, **changes}
    return LayerStack(build_layers(settings("gpt", **sizes), SINGLE, seed=1))


def test_normal_weights_have_the_std_of_gpt_2() -> None:
    stack = _wide(initialization={})
    for name in (
        "layers.0.attention.query",
        "layers.1.attention.key_value",
        "layers.0.feed_forward.up",
        "embedding",
        "positions",
    ):
        assert _std(stack, f"{name}.weight") == pytest.approx(0.02, rel=0.05)
    for name in ("layers.0.attention.output", "layers.1.feed_forward.down"):
        assert _std(stack, f"{name}.weight") == pytest.approx(0.02 / math.sqrt(2 * 2), rel=0.05)
    for name, parameter in stack.named_parameters():
        if parameter.dim() == 1:
            assert (parameter == (1.0 if name.endswith("norm.weight") else 0.0)).all(), name


def test_xavier_bounds_count_keys_and_values_apart() -> None:
    stack = _wide(initialization={"scheme": "xavier_uniform", "residual_scale": "none"}, num_kv_heads=2)
    for name, fans in (("attention.query", 256), ("attention.key_value", 128 + 64), ("feed_forward.up", 384)):
        bound = math.sqrt(6 / fans)
        weight = stack.get_parameter(f"layers.0.{name}.weight").detach()
        assert 0.99 * bound < weight.abs().max() <= bound
    assert _std(stack, "embedding.weight") == pytest.approx(128**-0.5, rel=0.05)


def test_fan_in_weights_keep_the_variance_of_what_they_read() -> None:
    stack = _wide(initialization={"scheme": "fan_in", "residual_scale": "none"}, head_dim=64)
    for name, fan_in in (("attention.query", 128), ("attention.output", 256), ("feed_forward.down", 256)):
        assert _std(stack, f"layers.0.{name}.weight") == pytest.approx(fan_in**-0.5, rel=0.05)
    assert _std(stack, "embedding.weight") == pytest.approx(1.0, rel=0.05)


def test_the_std_of_embeddings_can_be_set() -> None:
    stack = _wide(initialization={"embedding_std": 0.5})
    assert _std(stack, "embedding.weight") == pytest.approx(0.5, rel=0.05)
    assert _std(stack, "layers.0.attention.query.weight") == pytest.approx(0.02, rel=0.05)


def test_no_two_parameters_start_alike() -> None:
    matrices = [p.detach().flatten()[:512] for p in _wide().parameters() if p.dim() == 2]
    for index, a in enumerate(matrices):
        for b in matrices[index + 1 :]:
            assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1]) < 0.25
