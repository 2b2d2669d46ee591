"""Dropout whose mask is a pure function of seed, place in the model, sample and position (Srivastava et al. 2014).

The mask does not depend on the layout, the pipeline stage, the micro-batch or a recomputation, and nothing has to be saved to
repeat it. The key of a row is the global sample number n, so that a resumed or resharded run drops the same values.

Not taken: torch's dropout with forked generator states (each tensor and pipeline rank would need its own bookkeeping, and two
layouts would never agree). Where the rate is 0 nothing of this runs.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pretrain.parallel.random import keep_mask, stream_key
from pretrain.parallel.sequence import Stream

_SAMPLE_STRIDE = 1 << 32
"""Rows of a sample: position, or head and query position, is below it."""


class _Dropped(torch.autograd.Function):
    """Keeps one byte a value for the backward, where autograd's own product would keep a mask of the input's type."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, keep: torch.Tensor, factor: float) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return (x * factor).masked_fill_(~keep, 0.0)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (keep,) = ctx.saved_tensors
        return (grad * ctx.factor).masked_fill_(~keep, 0.0), None, None


class Dropout(nn.Module):
    """Drops values of rows that are numbered globally."""

    def __init__(self, rate: float, seed: int, name: str, stream: Stream) -> None:
        super().__init__()
        self.rate, self.stream = rate, stream
        self.key = stream_key(seed, "dropout", name)

    def forward(self, x: torch.Tensor, sample: torch.Tensor | None) -> torch.Tensor:
        """(B, L, D) of the stream to the same; sample (B,) int64."""
        if not self.training:
            return x
        assert sample is not None, "the carry brings the sample numbers wherever something is dropped"
        rows = sample.unsqueeze(1) * _SAMPLE_STRIDE + self.stream.positions(x.shape[1], x.device)
        return self.drop(x, rows)

    def drop(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """(..., F) with its rows numbered (...) in int64."""
        keep, factor = keep_mask(self.key, rows, x.shape[-1], self.rate)
        return _Dropped.apply(x, keep, factor)  # type: ignore[return-value]


class HeadDropout(Dropout):
    """Drops attention probabilities; rows are numbered by sample, *global* head and query position, columns by key position."""

    def probabilities(self, p: torch.Tensor, sample: torch.Tensor | None, first_head: int) -> torch.Tensor:
        """(B, H', S, T) of heads from `first_head` on to the same."""
        if not self.training:
            return p
        queries = torch.arange(p.shape[2], device=p.device)
        keep, factor = self.keep(sample, range(first_head, first_head + p.shape[1]), queries, (range(p.shape[3]),))
        return _Dropped.apply(p, keep, factor)  # type: ignore[return-value]

    def keep(
        self, sample: torch.Tensor | None, heads: range, queries: torch.Tensor, keys: Sequence[range]
    ) -> tuple[torch.Tensor, float]:
        """What is kept of the probabilities of some heads, queries and keys, and the factor that makes up for the others.

        Args:
            sample: (B,) sample numbers.
            heads: numbers of them in the model.
            queries: (S',) their positions in the sequence.
            keys: runs of T' positions in all.

        Returns:
            Mask (B, H', S', T') bool, and the factor.
        """
        assert sample is not None, "the carry brings the sample numbers wherever something is dropped"
        numbers = torch.arange(heads.start, heads.stop, device=sample.device)
        rows = sample.view(-1, 1, 1) * _SAMPLE_STRIDE + (numbers.view(-1, 1) << 20) + queries
        runs = [keep_mask(self.key, rows, len(run), self.rate, first=run.start) for run in keys]
        masks = [mask for mask, _ in runs]
        return masks[0] if len(masks) == 1 else torch.cat(masks, -1), runs[0][1]


class KeepAll(nn.Module):
    """What stands where the rate is 0."""

    def forward(self, x: torch.Tensor, sample: torch.Tensor | None) -> torch.Tensor:
        """The input itself."""
        return x


def build_dropout(rate: float, seed: int, name: str, stream: Stream) -> nn.Module:
    """Dropout at one place in the model.

    Args:
        rate: share of values to drop.
        seed: of the run.
        name: the place, the same under every layout, such as `layers.0.attention`.
        stream: what it is applied to.
    """
    return Dropout(rate, seed, name, stream) if rate > 0 else KeepAll()
