"""Cross-entropy of logits that are split over the vocabulary, without ever gathering them.

Legend: B sequences, S positions, V vocabulary, N = B * S rows, W = V/tp columns of a rank (rounded up).

Each rank takes the log-sum-exp of its columns; the ranks combine three numbers a row (Shoeybi et al. 2019, section 3), so
that a whole distribution exists nowhere. Softmax is never stored either: backward makes it again from logits and log(Z), in
slices of rows that stay in the cache, and writes the gradient once. All arithmetic is fp32, whatever the logits are.

With label smoothing e (Szegedy et al. 2016, section 7) the objective is (1 - e) CE(label) + e/V sum over v of CE(v), over the
whole vocabulary; log(Z) is returned for a z-loss (Chowdhery et al. 2022, PaLM, section 5).

Not taken: torch's cross_entropy (it keeps N x V log-probabilities in fp32 and cannot see other ranks' columns).
Cost: memory of one gradient of the logits; time below torch's on a CPU, for it passes less often over memory.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist

from pretrain.parallel.collectives import all_reduce
from pretrain.parallel.mesh import Axis

IGNORED = -100
"""Label of a position that is no target (torch's own default)."""


class TokenLosses(NamedTuple):
    """Of each position, (B, S) fp32, the same on every rank of the axis; 0 where the label is ignored."""

    cross_entropy: torch.Tensor
    """-log p(label), in nats."""
    objective: torch.Tensor
    """The same with label smoothing."""
    log_z: torch.Tensor
    """Logarithm of the softmax's denominator."""


def vocabulary_parallel_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, axis: Axis, vocab_size: int, label_smoothing: float = 0.0
) -> TokenLosses:
    """Losses of each position; each of the three may be differentiated.

    Args:
        logits: (B, S, V/tp), this rank's columns; those past the vocabulary are padding and count as -inf.
        labels: (B, S) int64 below vocab_size, or IGNORED.
        axis: the axis that the vocabulary is split over.
        vocab_size: V, without padding.
        label_smoothing: e, the share of the target's mass that is spread over the vocabulary.
    """
    columns = columns_of(axis, logits.shape[-1], vocab_size, label_smoothing)
    losses = _CrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), columns)
    return TokenLosses(*(loss.view(labels.shape) for loss in losses))  # type: ignore[union-attr]


class Columns(NamedTuple):
    """Which columns of the vocabulary a rank holds, and how the objective spreads its mass."""

    axis: Axis
    first: int
    """Token of the first column."""
    real: int
    """Columns that are no padding."""
    vocab_size: int
    smoothing: float


def columns_of(axis: Axis, width: int, vocab_size: int, label_smoothing: float) -> Columns:
    """Those of this rank, where each has `width` of them."""
    first = width * axis.rank
    return Columns(axis, first, max(0, min(width, vocab_size - first)), vocab_size, label_smoothing)


class Targets(NamedTuple):
    """Of N rows."""

    column: torch.Tensor
    """(N,) int64: the label's column on this rank; 0 where it has none."""
    owned: torch.Tensor
    """(N,) bool: whether it has one."""
    valid: torch.Tensor
    """(N,) bool: whether there is a label at all."""

    @staticmethod
    def of(labels: torch.Tensor, columns: Columns) -> "Targets":
        """From (N,) labels."""
        valid = labels != IGNORED
        column = labels - columns.first
        owned = valid & (column >= 0) & (column < columns.real)
        return Targets(column.masked_fill(~owned, 0), owned, valid)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, logits: torch.Tensor, labels: torch.Tensor, columns: Columns
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        targets = Targets.of(labels, columns)
        sums = row_sums(logits, targets, columns)
        losses, log_z = combine(sums, targets, columns)
        ctx.save_for_backward(logits, log_z, *targets)
        ctx.columns = columns
        return losses

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # type: ignore[override]
        logits, log_z, *kept = ctx.saved_tensors
        columns, targets = ctx.columns, Targets(*kept)
        grad = torch.empty_like(logits)
        grad[:, columns.real :] = 0.0
        real = slice(columns.real)
        write_gradient(grad[:, real], logits[:, real], log_z, targets, gradient_shares(grads, targets, columns))
        return grad, None, None


class GradientShares(NamedTuple):
    """What a row's gradient is made of, (N,) each: softmax x at_softmax - at_every - at_label in the label's column."""

    at_softmax: torch.Tensor
    at_label: torch.Tensor
    at_every: torch.Tensor | None
    """None where nothing is smoothed."""


def gradient_shares(grads: tuple[torch.Tensor, ...], targets: Targets, columns: Columns) -> GradientShares:
    """From the gradients of the three losses, (N,) each."""
    plain, smoothed, of_log_z = (grad.masked_fill(~targets.valid, 0.0) for grad in grads)
    at_label = (plain + (1 - columns.smoothing) * smoothed).masked_fill_(~targets.owned, 0.0)
    at_every = (columns.smoothing / columns.vocab_size) * smoothed if columns.smoothing > 0 else None
    return GradientShares(plain + smoothed + of_log_z, at_label, at_every)


def write_gradient(
    grad: torch.Tensor, logits: torch.Tensor, log_z: torch.Tensor, targets: Targets, shares: GradientShares
) -> None:
    """Fills `grad` (N, W), which may be `logits` itself, in slices of rows that stay in the cache."""
    column = targets.column.unsqueeze(1)
    for part in _slices(logits, logits.shape[1]):
        values = logits[part].to(torch.float32, copy=True).sub_(log_z[part, None])
        values.exp_().mul_(shares.at_softmax[part, None])
        if shares.at_every is not None:
            values.sub_(shares.at_every[part, None])
        grad[part] = values.scatter_add_(1, column[part], -shares.at_label[part, None])


def _slices(rows: torch.Tensor, real: int) -> list[slice]:
    """Slices of rows: on a CPU as many as a core's cache holds, elsewhere few, for each costs kernel launches."""
    if real == 0:
        return []
    values = 1 << 18 if rows.device.type == "cpu" else 1 << 27
    step = max(1, values // real)
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


class RowSums(NamedTuple):
    """Of a rank's real columns, (N,) fp32 each."""

    log_z: torch.Tensor
    """Log-sum-exp; -inf where there is no column."""
    target: torch.Tensor
    """The label's logit; 0 where another rank has it."""
    total: torch.Tensor
    """The logits' sum; 0 where nothing is smoothed."""


def row_sums(logits: torch.Tensor, targets: Targets, columns: Columns) -> RowSums:
    """What a rank has to know of each row of its logits (N, W)."""
    log_z = logits.new_full(logits.shape[:1], float("-inf"), dtype=torch.float32)
    total = torch.zeros_like(log_z)
    for part in _slices(logits, columns.real):
        values = logits[part, : columns.real].float()
        # log_softmax is one fused kernel where logsumexp is four; what it took from a value is log(Z).
        log_z[part] = values[:, 0] - values.log_softmax(1)[:, 0]
        if columns.smoothing > 0:
            total[part] = values.sum(1)
    target = logits.gather(1, targets.column.unsqueeze(1)).squeeze(1).float()
    return RowSums(log_z, target.masked_fill_(~targets.owned, 0.0), total)


Losses = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def combine(sums: RowSums, targets: Targets, columns: Columns) -> tuple[Losses, torch.Tensor]:
    """The ranks' sums to the three losses, and log(Z): one maximum and one sum of three numbers a row."""
    log_z, target, total = sums
    if columns.axis.size > 1:
        largest = all_reduce(log_z.clone(), columns.axis, dist.ReduceOp.MAX)
        mass, target, total = all_reduce(torch.stack(((log_z - largest).exp(), target, total)), columns.axis)
        log_z = mass.log().add_(largest)
    smoothing = columns.smoothing
    cross_entropy = log_z - target
    objective = (1 - smoothing) * cross_entropy + smoothing * (log_z - total / columns.vocab_size)
    plain, smoothed, of_log_z = (loss.masked_fill(~targets.valid, 0.0) for loss in (cross_entropy, objective, log_z))
    return (plain, smoothed, of_log_z), log_z
