import pytest
import torch
from torch.nn import functional as F

from pretrain.parallel.collectives import copy_to_axis, reduce_from_axis
from pretrain.parallel.cross_entropy import IGNORED, vocabulary_parallel_cross_entropy
from pretrain.parallel.embedding import VocabularyTable
from pretrain.parallel.linear import place
from pretrain.parallel.mesh import Axis
from pretrain.parallel.random import Normal
from pretrain.parallel.shard import shard_of
from tests.parallel.axes import SINGLE, deviation, model_axis
from tests.worlds import World

_D = 6


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _table(vocabulary: int, axis: Axis) -> VocabularyTable:
    table = VocabularyTable(vocabulary, _D, axis, weight=Normal(0.5))
    place(table, "embedding", seed=3)
    return table


def _labels(vocabulary: int, rows: int = 40) -> torch.Tensor:
    labels = torch.randint(0, vocabulary, (2, rows // 2), generator=_generator(2))
    labels[0, :3] = IGNORED
    labels[1, -1] = vocabulary - 1
    return labels


def _objective(table: VocabularyTable, tokens: torch.Tensor, vocabulary: int, smoothing: float) -> torch.Tensor:
    """A tied model without layers: its loss, with a z-loss, weighted unevenly."""
    hidden = reduce_from_axis(table.embed(tokens), table.axis)
    losses = vocabulary_parallel_cross_entropy(
        table.logits(copy_to_axis(torch.tanh(hidden), table.axis)),
        _labels(vocabulary),
        table.axis,
        vocabulary,
        smoothing,
    )
    weights = torch.linspace(0.5, 2.0, tokens.numel()).view(tokens.shape)
    return (weights * (losses.objective + 0.3 * losses.cross_entropy + 0.1 * losses.log_z**2)).sum()


def _errors(tp: int, vocabulary: int, smoothing: float) -> dict[str, float]:
    tokens = torch.randint(0, vocabulary, (2, 20), generator=_generator(1))
    whole, split = _table(vocabulary, SINGLE), _table(vocabulary, model_axis(tp))
    shard = shard_of(split.weight)
    losses = [_objective(table, tokens, vocabulary, smoothing) for table in (whole, split)]
    for loss in losses:
        loss.backward()
    assert whole.weight.grad is not None and split.weight.grad is not None
    padding = split.weight.grad[shard.lengths[0] :]
    return {
        "loss": deviation(losses[1], losses[0]),
        "weight": float((shard.real(split.weight) - shard.of(whole.weight)).abs().sum()),
        "weight gradient": deviation(shard.real(split.weight.grad), shard.of(whole.weight.grad)),
        "gradient of padding": float(padding.abs().sum()),
        "embedding": deviation(reduce_from_axis(split.embed(tokens), split.axis), whole.embed(tokens)),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [16, 37, 5])
@pytest.mark.parametrize("tp", [2, 4])
def test_a_split_vocabulary_equals_a_whole_one(world: World, tp: int, vocabulary: int, smoothing: float) -> None:
    """37 and 5 do not divide; of 5 among 4 ranks the last has none but padding."""
    for errors in world.run(_errors, tp, vocabulary, smoothing):
        assert max(errors.values()) < 2e-6, errors


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [11, 9000])
def test_losses_and_gradients_are_those_of_torch(vocabulary: int, smoothing: float) -> None:
    """9,000 columns make the backward work in several slices of rows."""
    logits = (3 * torch.randn(2, 20, vocabulary, generator=_generator(0))).requires_grad_()
    labels = _labels(vocabulary)
    losses = vocabulary_parallel_cross_entropy(logits, labels, SINGLE, vocabulary, smoothing)
    exact = logits.double()
    flat = (exact.flatten(0, 1), labels.flatten())
    plain = F.cross_entropy(*flat, reduction="none").view(labels.shape)
    smoothed = F.cross_entropy(*flat, reduction="none", label_smoothing=smoothing).view(labels.shape)
    log_z = exact.logsumexp(-1).masked_fill(labels == IGNORED, 0.0)
    for ours, theirs in zip(losses, (plain, smoothed, log_z), strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-6, rtol=1e-6)
        (found,) = torch.autograd.grad((ours**2).sum(), logits, retain_graph=True)
        (expected,) = torch.autograd.grad((theirs**2).sum(), logits, retain_graph=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_pass_a_numerical_check() -> None:
    logits = torch.randn(1, 4, 7, generator=_generator(0), dtype=torch.float64)
    labels = torch.tensor([[2, 0, IGNORED, 6]])

    def objective(x: torch.Tensor) -> torch.Tensor:
        losses = vocabulary_parallel_cross_entropy(x, labels, SINGLE, 7, 0.2)
        return (losses.objective + losses.log_z**2).sum()

    x = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(objective(x), x)
    step = 1e-2
    for index in range(7):
        shift = torch.zeros_like(logits)
        shift[0, 3, index] = step
        slope = (objective(logits + shift) - objective(logits - shift)) / (2 * step)
        assert abs(slope - grad[0, 3, index]) < 1e-3


def test_bf16_logits_lose_nothing_but_their_own_rounding() -> None:
    exact = 3 * torch.randn(2, 20, 300, generator=_generator(0))
    rounded = exact.bfloat16().requires_grad_()
    reference = rounded.detach().float().requires_grad_()
    labels = _labels(300)
    ours = vocabulary_parallel_cross_entropy(rounded, labels, SINGLE, 300, 0.1)
    theirs = F.cross_entropy(reference.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=0.1)
    assert ours.objective.dtype == torch.float32
    torch.testing.assert_close(ours.objective.flatten(), theirs)
    ours.objective.sum().backward()
    theirs.sum().backward()
    assert rounded.grad is not None and reference.grad is not None
    assert rounded.grad.dtype == torch.bfloat16
    assert (
        torch.equal(rounded.grad, reference.grad.bfloat16()) or deviation(rounded.grad.float(), reference.grad) < 4e-3
    )


def test_padded_columns_do_not_count() -> None:
    logits = torch.randn(2, 20, 16, generator=_generator(0)).requires_grad_()
    with torch.no_grad():
        logits[..., 13:] = 1e4
    losses = vocabulary_parallel_cross_entropy(logits, _labels(13), SINGLE, 13, 0.1)
    without = vocabulary_parallel_cross_entropy(logits[..., :13], _labels(13), SINGLE, 13, 0.1)
    for a, b in zip(losses, without, strict=True):
        assert torch.equal(a, b)
    (grad,) = torch.autograd.grad(losses.objective.sum(), logits)
    assert grad[..., 13:].abs().sum() == 0


def test_ignored_labels_have_neither_loss_nor_gradient() -> None:
    logits = torch.randn(2, 20, 16, generator=_generator(0)).requires_grad_()
    labels = _labels(16)
    losses = vocabulary_parallel_cross_entropy(logits, labels, SINGLE, 16, 0.1)
    (grad,) = torch.autograd.grad(sum(loss.sum() for loss in losses), logits)  # type: ignore[arg-type]
    for loss in losses:
        assert (loss[labels == IGNORED] == 0).all()
    assert grad[labels == IGNORED].abs().sum() == 0


def test_large_logits_neither_overflow_nor_cancel() -> None:
    logits = torch.tensor([[[1e4, 0.0, -1e4], [1e4, 1e4, 1e4]]])
    losses = vocabulary_parallel_cross_entropy(logits, torch.tensor([[1, 0]]), SINGLE, 3)
    torch.testing.assert_close(losses.cross_entropy, torch.tensor([[1e4, 1.0986]]), atol=1e-3, rtol=1e-4)
