"""Attention against its formula, written out head by head."""

import math

import pytest
import torch

from pretrain.model.attention import Attention, _heads_used
from pretrain.model.masks import Mask, Masks
from pretrain.model.positions import Rotary
from pretrain.parallel.linear import place
from tests.model.small_models import SINGLE, settings


def _attention(**changes: object) -> Attention:
    attention = Attention(settings("gpt", **changes), SINGLE, 2, 0, "layers.0.attention")
    place(attention, "layers.0.attention", seed=5)
    for bias in (attention.query.bias, attention.key_value.bias, attention.output.bias):
        if bias is not None:
            bias.data.normal_(generator=torch.Generator().manual_seed(1))
    return attention


def _by_formula(attention: Attention, x: torch.Tensor, memory: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """softmax(Q K^T / sqrt(K)) V for each head (Vaswani et al. 2017, equation 1), in float64; allowed (S, T)."""
    parameters = {name: p.detach().double() for name, p in attention.named_parameters()}
    width = attention.head_dim
    query = x.double() @ parameters["query.weight"].T + parameters["query.bias"]
    both = memory.double() @ parameters["key_value.weight"].T + parameters["key_value.bias"]

    def normed(head: torch.Tensor, name: str) -> torch.Tensor:
        if f"{name}.weight" not in parameters:
            return head
        return head / (head.square().mean(-1, keepdim=True) + 1e-5).sqrt() * parameters[f"{name}.weight"]

    kv_heads = both.shape[-1] // (2 * width)
    heads = []
    for head in range(attention.heads):
        group = head * kv_heads // attention.heads
        q = normed(query[..., head * width : (head + 1) * width], "query_norm")
        k = normed(both[..., 2 * group * width : (2 * group + 1) * width], "key_norm")
        v = both[..., (2 * group + 1) * width : (2 * group + 2) * width]
        scores = (q @ k.mT / math.sqrt(width)).masked_fill(~allowed, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.cat(heads, -1) @ parameters["output.weight"].T + parameters["output.bias"]


@pytest.mark.parametrize("qk_norm", ["none", "head"])
@pytest.mark.parametrize("head_dim", [None, 12])
@pytest.mark.parametrize("kv_heads", [None, 2, 1])
@pytest.mark.parametrize("masked", ["causal", "documents"])
def test_self_attention_is_the_formula(kv_heads: int | None, head_dim: int | None, masked: str, qk_norm: str) -> None:
    attention = _attention(num_kv_heads=kv_heads, head_dim=head_dim, qk_norm=qk_norm)
    for norm in (attention.query_norm, attention.key_norm):
        if norm is not None:
            norm.weight.data.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(2))
    x = torch.randn(2, 9, 32)
    documents = torch.zeros(2, 9, dtype=torch.long)
    if masked == "documents":
        documents[:, 4:] = 1
    mask = Masks().causal(documents, torch.float32)
    assert mask.causal == (masked == "causal")
    allowed = torch.ones(9, 9).tril().bool() & (documents[0][:, None] == documents[0])
    found = attention(x, x, mask)
    torch.testing.assert_close(found.double(), _by_formula(attention, x, x, allowed), atol=1e-5, rtol=1e-5)


def test_heads_are_normed_by_one_weight_before_they_are_turned() -> None:
    """Turning keeps a head's length, and the norm sets it: a key of any scale gives the same scores."""
    names = {name for name, _ in _attention(qk_norm="head").named_parameters()}
    assert {"query_norm.weight", "key_norm.weight"} <= names
    attention = _attention(qk_norm="head", positions="rotary")
    rotary = Rotary(settings("gpt", positions="rotary")).factors(torch.arange(9).expand(2, -1))
    x = torch.randn(2, 9, 32)
    before = attention(x, x, Mask(causal=True), rotary)
    attention.query.weight.data *= 64
    assert attention.query.bias is not None
    attention.query.bias.data *= 64
    torch.testing.assert_close(attention(x, x, Mask(causal=True), rotary), before, atol=1e-4, rtol=1e-4)


def test_attention_to_another_stream_is_the_formula() -> None:
    attention = _attention()
    x, memory = torch.randn(2, 9, 32), torch.randn(2, 5, 32)
    everything = torch.ones(9, 5).bool()
    found = attention(x, memory, Mask())
    torch.testing.assert_close(found.double(), _by_formula(attention, x, memory, everything), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [None, 1])
def test_a_dropped_probability_takes_its_value_away_and_the_rest_make_up(kv_heads: int | None) -> None:
    """The mean over many masks is attention without dropout; a single mask is not."""
    attention = _attention(attention_dropout=0.3, num_kv_heads=kv_heads)
    x = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    mask = Mask(causal=True)
    expected = attention.eval()(x, x, mask)
    attention.train()
    many = x.expand(4000, -1, -1)
    dropped = attention(many, many, mask, None, torch.arange(4000))
    error = dropped.std(0) / math.sqrt(4000)
    assert ((dropped.mean(0) - expected[0]).abs() < 5 * error + 1e-4).all()
    assert (dropped[0] - expected[0]).abs().max() > 1e-2


def test_heads_of_a_rank_take_the_key_value_heads_that_they_use() -> None:
    twelve = settings("gpt", num_heads=12, num_kv_heads=3, head_dim=4)
    assert _heads_used(twelve, 0, 3) == slice(0, 1)
    assert _heads_used(twelve, 3, 3) == [0, 1, 1]
    assert _heads_used(twelve, 0, 6) == [0, 0, 0, 0, 1, 1]
    eight = settings("gpt", num_heads=8, num_kv_heads=2, head_dim=4)
    assert _heads_used(eight, 0, 8) == slice(0, 2)
    assert _heads_used(eight, 6, 2) == slice(1, 2)
