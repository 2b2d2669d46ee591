import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pretrain.parallel.collectives import copy_to_axis
from pretrain.parallel.cross_entropy import IGNORED, TokenLosses, vocabulary_parallel_cross_entropy
from pretrain.parallel.mesh import Axis
from pretrain.parallel.shard import Shard
from pretrain.parallel.tiled_cross_entropy import tiled_cross_entropy
from tests.parallel.axes import SINGLE, deviation, model_axis
from tests.worlds import World

_B, _C, _D = 2, 20, 6


def _tensors(vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A stream, a whole table and labels."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(_B, _C, _D, generator=generator)
    labels = torch.randint(0, vocabulary, (_B, _C), generator=generator)
    labels[0, :3] = IGNORED
    labels[1, -1] = vocabulary - 1
    return hidden, torch.randn(vocabulary, _D, generator=generator), labels


def _objective(losses: TokenLosses) -> torch.Tensor:
    """A gradient of its own for each loss of each token."""
    weights = torch.linspace(0.5, 2.0, _B * _C).view(_B, _C)
    return (weights * (losses.objective + 0.3 * losses.cross_entropy**2 + 0.1 * losses.log_z**2)).sum()


def _gradients(
    axis: Axis, vocabulary: int, smoothing: float, tile: int | None, dtype: torch.dtype = torch.float32
) -> list[torch.Tensor]:
    """The three losses, and the gradients of the stream and of this rank's table (V/tp, D)."""
    whole_hidden, whole_table, labels = _tensors(vocabulary)
    shard, local = Shard.split(tuple(whole_table.shape), {0: axis})
    table = torch.zeros(local)
    shard.real(table).copy_(shard.of(whole_table))
    hidden, table = whole_hidden.to(dtype).requires_grad_(), table.to(dtype).requires_grad_()
    entered = copy_to_axis(hidden, axis)
    if tile is None:
        logits = torch.nn.functional.linear(entered, table)
        losses = vocabulary_parallel_cross_entropy(logits, labels, axis, vocabulary, smoothing)
    else:
        losses = tiled_cross_entropy(
            entered, table, labels, axis, vocabulary, tile_tokens=tile, label_smoothing=smoothing
        )
    _objective(losses).backward()
    assert hidden.grad is not None and table.grad is not None
    return [*(loss.detach() for loss in losses), hidden.grad, table.grad]


@pytest.mark.parametrize("tile", [1, 7, 40, 1000])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [5, 61])
def test_tiles_change_neither_losses_nor_gradients(vocabulary: int, smoothing: float, tile: int) -> None:
    whole = _gradients(SINGLE, vocabulary, smoothing, None)
    tiled = _gradients(SINGLE, vocabulary, smoothing, tile)
    assert max(deviation(a, b) for a, b in zip(tiled, whole, strict=True)) < 2e-6


def _deviations(tp: int, vocabulary: int, smoothing: float) -> float:
    axis = model_axis(tp)
    whole, tiled = (_gradients(axis, vocabulary, smoothing, tile) for tile in (None, 7))
    return max(deviation(a, b) for a, b in zip(tiled, whole, strict=True))


@pytest.mark.parametrize(("vocabulary", "smoothing"), [(61, 0.1), (5, 0.0)])
@pytest.mark.parametrize("tp", [2, 4])
def test_tiles_of_a_split_vocabulary_change_nothing(world: World, tp: int, vocabulary: int, smoothing: float) -> None:
    """Of 5 tokens among 4 ranks the last rank has none but padding."""
    assert max(world.run(_deviations, tp, vocabulary, smoothing)) < 2e-6


def test_bf16_tiles_round_the_tables_gradient_no_oftener_than_whole_logits() -> None:
    """20 tiles, and no sum over them is made in bf16."""
    exact = _gradients(SINGLE, 61, 0.1, None)[-1]
    whole = _gradients(SINGLE, 61, 0.1, None, torch.bfloat16)[-1].float()
    tiled = _gradients(SINGLE, 61, 0.1, 2, torch.bfloat16)[-1].float()
    assert (tiled - exact).square().mean() < 1.1 * (whole - exact).square().mean()


@pytest.mark.parametrize(("tile", "products"), [(None, 3), (7, 4)])
def test_tiles_cost_one_more_product(tile: int | None, products: int) -> None:
    """Of the stream with the table: forward, and backward to each of both; in tiles the logits once more."""
    with FlopCounterMode(display=False) as counter:
        _gradients(SINGLE, 61, 0.0, tile)
    assert counter.get_total_flops() == products * 2 * _B * _C * _D * 61


def test_without_gradients_nothing_is_kept_for_them() -> None:
    hidden, table, labels = _tensors(61)
    with torch.no_grad():
        losses = tiled_cross_entropy(hidden, table, labels, SINGLE, 61, tile_tokens=7)
    expected = vocabulary_parallel_cross_entropy(hidden @ table.T, labels, SINGLE, 61)
    assert not losses.objective.requires_grad
    torch.testing.assert_close(losses, expected)
