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
    columns = logits.shape[-1]
    real = max(0, min(columns, vocab_size - columns * axis.rank))
    rows = logits.reshape(-1, columns)
    losses = _CrossEntropy.apply(rows, labels.reshape(-1), axis, columns * axis.rank, real, vocab_size, label_smoothing)
    return TokenLosses(*(loss.view(labels.shape) for loss in losses))  # type: ignore[union-attr]


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        logits: torch.Tensor,
        labels: torch.Tensor,
        axis: Axis,
        first: int,
        real: int,
        vocab_size: int,
        smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        valid = labels != IGNORED
        column = labels - first
        owned = valid & (column >= 0) & (column < real)
        column = column.masked_fill(~owned, 0).unsqueeze(1)  # (N, 1)
        log_z, logit_sum = _row_sums(logits, real, smoothing)
        target = logits.gather(1, column).squeeze(1).float().masked_fill_(~owned, 0.0)
        log_z, target, logit_sum = _combine(log_z, target, logit_sum, axis)
        cross_entropy = log_z - target
        objective = (1 - smoothing) * cross_entropy + smoothing * (log_z - logit_sum / vocab_size)
        ctx.save_for_backward(logits, log_z, column, owned, valid)
        ctx.real, ctx.vocab_size, ctx.smoothing = real, vocab_size, smoothing
        losses = (cross_entropy, objective, log_z.clone())
        return tuple(loss.masked_fill_(~valid, 0.0) for loss in losses)  # type: ignore[return-value]

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # type: ignore[override]
        logits, log_z, column, owned, valid = ctx.saved_tensors
        plain, smoothed, of_log_z = (grad.masked_fill(~valid, 0.0) for grad in grads)  # (N,) each
        at_softmax = plain + smoothed + of_log_z
        at_label = (plain + (1 - ctx.smoothing) * smoothed).masked_fill_(~owned, 0.0)
        at_every = (ctx.smoothing / ctx.vocab_size) * smoothed
        grad = torch.empty_like(logits)
        grad[:, ctx.real :] = 0.0
        for part in _slices(logits, ctx.real):
            # softmax * at_softmax - at_every - at_label of some rows, in place and in the cache
            values = logits[part, : ctx.real].to(torch.float32, copy=True).sub_(log_z[part, None])
            values.exp_().mul_(at_softmax[part, None])
            if ctx.smoothing > 0:
                values.sub_(at_every[part, None])
            grad[part, : ctx.real] = values.scatter_add_(1, column[part], -at_label[part, None])
        return grad, None, None, None, None, None, None


def _slices(rows: torch.Tensor, real: int) -> list[slice]:
    """Slices of rows: on a CPU as many as a core's cache holds, elsewhere few, for each costs kernel launches."""
    if real == 0:
        return []
    values = 1 << 18 if rows.device.type == "cpu" else 1 << 27
    step = max(1, values // real)
    return [slice(start, start + step) for start in range(0, rows.shape[0], step)]


def _row_sums(logits: torch.Tensor, real: int, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each row's real columns, (N,) fp32: log-sum-exp, and the sum (0 where nothing is smoothed)."""
    log_z = logits.new_full(logits.shape[:1], float("-inf"), dtype=torch.float32)
    logit_sum = torch.zeros_like(log_z)
    for part in _slices(logits, real):
        values = logits[part, :real].float()
        # log_softmax is one fused kernel where logsumexp is four; what it took from a value is log(Z).
        log_z[part] = values[:, 0] - values.log_softmax(1)[:, 0]
        if smoothing > 0:
            logit_sum[part] = values.sum(1)
    return log_z, logit_sum


def _combine(
    log_z: torch.Tensor, target: torch.Tensor, logit_sum: torch.Tensor, axis: Axis
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ranks' parts to those of the whole vocabulary: one maximum and one sum of three numbers a row."""
    if axis.size == 1:
        return log_z, target, logit_sum
    largest = all_reduce(log_z.clone(), axis, dist.ReduceOp.MAX)
    mass, target, logit_sum = all_reduce(torch.stack(((log_z - largest).exp(), target, logit_sum)), axis)
    return mass.log().add_(largest), target, logit_sum
