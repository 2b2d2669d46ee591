"""The product with a vocabulary table and its cross-entropy in one, in tiles: all logits never exist at once.

Legend: N = B * C rows, D width of the stream, W = V/tp columns of a rank, t tokens of a tile.

Forward goes through the rows: of each tile's logits (t, W) it keeps three numbers a row, and the ranks combine them once at the
end. Backward goes through the columns instead, (N, t W / N) at a time, as many values: with log(Z) known, a column's gradient
needs no other. So a row of the weight's gradient is one product over all N rows, written where it belongs; only the stream's
gradient is a sum over tiles, (N, D) in fp32. Going through the rows again would pass over the whole (W, D) gradient once a
tile, and round it each time in bf16.

Cost: backward makes the logits again, 2 N D W FLOPs a rank beside the 6 of a head without tiles: a third of the head's work.
Not taken: gradients made in the forward pass and scaled in backward (Hsu et al. 2024, Liger Kernel), which save that product.
They are right only where every token's loss comes back with one and the same gradient, and they hold the weight's gradient from
the forward pass on; this function may be differentiated like any other.
"""

import torch
from torch.nn import functional as F

from pretrain.parallel.cross_entropy import (
    Columns,
    Losses,
    RowSums,
    Targets,
    TokenLosses,
    columns_of,
    combine,
    gradient_shares,
    row_sums,
    write_gradient,
)
from pretrain.parallel.mesh import Axis


def tiled_cross_entropy(
    hidden: torch.Tensor,
    table: torch.Tensor,
    labels: torch.Tensor,
    axis: Axis,
    vocab_size: int,
    *,
    tile_tokens: int,
    label_smoothing: float = 0.0,
) -> TokenLosses:
    """Losses of each position; each of the three may be differentiated.

    Args:
        hidden: (B, C, D), past `Stream.enter`.
        table: (V/tp, D), this rank's rows; those past the vocabulary are padding.
        labels: (B, C) int64 below vocab_size, or IGNORED.
        axis: the axis that the vocabulary is split over.
        vocab_size: V, without padding.
        tile_tokens: t; logits exist for that many tokens at a time.
        label_smoothing: as of `vocabulary_parallel_cross_entropy`.
    """
    columns = columns_of(axis, table.shape[0], vocab_size, label_smoothing)
    losses = _TiledCrossEntropy.apply(hidden.flatten(0, -2), table, labels.flatten(), columns, tile_tokens)
    return TokenLosses(*(loss.view(labels.shape) for loss in losses))  # type: ignore[union-attr]


class _TiledCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx, hidden: torch.Tensor, table: torch.Tensor, labels: torch.Tensor, columns: Columns, tile: int
    ) -> Losses:
        targets = Targets.of(labels, columns)
        parts = [slice(start, start + tile) for start in range(0, len(hidden), tile)]
        tiles = [
            row_sums(F.linear(hidden[part], table), Targets(*(of_row[part] for of_row in targets)), columns)
            for part in parts
        ]
        sums = RowSums(*(torch.cat(values) for values in zip(*tiles, strict=True)))
        losses, log_z = combine(sums, targets, columns)
        ctx.save_for_backward(hidden, table, log_z, *targets)
        ctx.columns, ctx.tile = columns, tile
        return losses

    @staticmethod
    def backward(ctx, *grads: torch.Tensor):  # type: ignore[override]
        hidden, table, log_z, *kept = ctx.saved_tensors
        columns, targets = ctx.columns, Targets(*kept)
        shares = gradient_shares(grads, targets, columns)
        of_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        of_table = torch.empty_like(table)
        of_table[columns.real :] = 0.0
        step = max(1, ctx.tile * table.shape[0] // len(hidden))
        for start in range(0, columns.real, step):
            rows = table[start : min(start + step, columns.real)]  # (W', D)
            inside = targets.owned & (targets.column >= start) & (targets.column < start + len(rows))
            here = Targets((targets.column - start).masked_fill_(~inside, 0), inside, targets.valid)
            logits = F.linear(hidden, rows)  # (N, W'), which becomes its own gradient
            label_share = shares.at_label.masked_fill(~inside, 0.0)
            write_gradient(logits, logits, log_z, here, shares._replace(at_label=label_share))
            torch.mm(logits.t(), hidden, out=of_table[start : start + len(rows)])
            of_hidden += logits @ rows
        return of_hidden.to(hidden.dtype), of_table, None, None, None
