import math

import pytest
import torch

from pretrain.model.positions import Rotary, positions_of, sinusoids
from tests.model.small_models import FAMILIES, build, positions_in, random_inputs, settings


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(torch.arange(50, dtype=torch.float64), 8)
    for position in (0, 1, 7, 49):
        for pair in range(4):
            angle = position / 10000 ** (2 * pair / 8)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle))
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle))


def _rotated_exactly(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Pairs (i, i + K/2) as complex numbers, turned in float64."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    angles = positions[:, :, None, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_is_exact_to_the_input_s_precision_at_far_positions(dtype: torch.dtype) -> None:
    """A table in bf16 would turn position 4001 by up to eight radians too much or too little."""
    model = settings("llama", max_sequence_length=8192, rotary_base=500_000.0)
    rotary = Rotary(model)
    positions = torch.tensor([[0, 1, 4001, 8191]])
    x = torch.randn(1, 4, 3, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = _rotated_exactly(x, positions, 500_000.0)
    found = Rotary.rotate(x, rotary.factors(positions))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, atol=4 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


def test_the_gradient_of_a_rotation_is_the_rotation_back() -> None:
    rotary = Rotary(settings("llama"))
    positions = torch.arange(6).view(1, 6)
    x = torch.randn(1, 6, 2, 8, requires_grad=True)
    y = Rotary.rotate(x, rotary.factors(positions))
    (grad,) = torch.autograd.grad(y, x, y)
    torch.testing.assert_close(grad, x)


def test_far_positions_of_a_sequence_that_ranks_share_are_in_the_table() -> None:
    positions = torch.tensor([[0, 1, 62, 63]])
    long = Rotary(settings("llama", max_sequence_length=64)).factors(positions)
    for found, expected in zip(Rotary(settings("llama")).factors(positions, 64), long, strict=True):
        torch.testing.assert_close(found, expected)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    rotary = Rotary(settings("llama", max_sequence_length=128))
    query, key = torch.randn(2, 8)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        factors = rotary.factors(torch.tensor([[query_position, key_position]]))
        turned = Rotary.rotate(torch.stack((query, key)).view(1, 2, 1, 8), factors)
        return turned[0, 0, 0] @ turned[0, 1, 0]

    torch.testing.assert_close(score(100, 93), score(7, 0), atol=1e-5, rtol=1e-5)
    assert abs(score(7, 0) - score(3, 0)) > 1e-3


@pytest.mark.parametrize("family", ["llama", "transformer"])
def test_sequences_may_be_longer_than_the_table_of_fixed_positions(family: str) -> None:
    model = settings(family, max_sequence_length=5)
    longer = settings(family, max_sequence_length=64)
    inputs = random_inputs(model)
    torch.testing.assert_close(build(model)(inputs), build(longer)(inputs))


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name].get("positions") != "none"])
def test_a_decoder_knows_where_a_token_stands(family: str) -> None:
    """Two swapped tokens change what comes after: a bag of words would not tell."""
    model = settings(family, dropout=0.0, attention_dropout=0.0)
    stack = build(model)
    inputs = random_inputs(model)
    inputs["documents"] = torch.zeros_like(inputs["documents"])
    inputs["positions"] = positions_in(inputs["documents"])
    inputs["tokens"][:, :3] = torch.tensor([1, 2, 3])
    swapped = {**inputs, "tokens": inputs["tokens"].clone()}
    swapped["tokens"][:, :2] = torch.tensor([2, 1])
    assert (stack(swapped)[:, 4] - stack(inputs)[:, 4]).abs().max() > 1e-3


def test_without_positions_the_first_layer_sees_a_bag_of_words() -> None:
    model = settings("parallel post-norm", num_layers=1)
    stack = build(model)
    inputs = random_inputs(model)
    inputs["documents"] = torch.zeros_like(inputs["documents"])
    swapped = {**inputs, "tokens": inputs["tokens"].clone()}
    swapped["tokens"][:, :2] = swapped["tokens"][:, :2].flip(1)
    torch.testing.assert_close(stack(swapped)[:, 4], stack(inputs)[:, 4])


def test_source_positions_restart_with_each_document() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, -1, -1], [5, 5, 5, 5, 5, 5, 5, 5], [-1, -1, -1, -1, -1, -1, -1, -1]])
    assert positions_of(documents).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], list(range(8)), list(range(8))]
    assert torch.equal(positions_of(documents), positions_in(documents))
