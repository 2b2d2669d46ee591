"""Ring attention: keys and values pass round the ranks that share a sequence, queries stay (Liu et al. 2023).

Legend: B sequences, S and T positions of whole query and key sequences, R ranks of the ring, K width of a head; H query heads and
G key-value heads of the rank.

Each hop's part is merged in fp32 by log-sum-exp. Backward passes keys and values round once more (keeping all of them would undo
what the ring saves), with their gradients one hop behind: they gather every rank's addend in fp32 and are home after R hops. The
next hop's tensors are under way while a rank computes; ranks have equal causal work (ring_masks.py).

It stands beside the model and not in parallel/: the kernels, masks and dropout of attention are what it is made of; of ranks it
knows `Passing` alone. Not taken: torch's experimental context_parallel (no CPU), gathering all keys (memory of T, no overlap).
Cost: forward R-1 messages of 2 B G T/R K values, backward the same and R of fp32 gradients of that size.
"""

from collections.abc import Iterator
from typing import Any

import torch

from pretrain.model.block_kernels import BlockKernel, InTheOpen, fused_kernel
from pretrain.model.dot_product import DotProduct, Mixer
from pretrain.model.dropout import HeadDropout
from pretrain.model.masks import Hop, Mask
from pretrain.parallel.mesh import Axis
from pretrain.parallel.ring import Passing


class RingDotProduct:
    """Attention of a rank's queries to the keys of all ranks of the ring. See `Mixer`."""

    def __init__(self, ring: Axis, dropout: HeadDropout | None, first_head: int) -> None:
        """Args are the ring, what drops probabilities, and the model's number of the first head that is seen here."""
        self.ring, self.dropout, self.first_head = ring, dropout, first_head

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Mask, sample: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, S/R, H, K), twice (B, T/R, G, K) to (B, S/R, H, K)."""
        kernel = fused_kernel(query.device)
        if self.dropout is not None and self.dropout.training:
            kernel = InTheOpen(self.dropout, self.first_head, sample)
        heads_first = (tensor.transpose(1, 2) for tensor in (query, key, value))
        mixed: Any = _RingAttention.apply(*heads_first, mask.hops, self.ring, kernel)
        return mixed.transpose(1, 2)


class _RingAttention(torch.autograd.Function):
    """(B, H, S/R, K), twice (B, G, T/R, K) to (B, H, S/R, K)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        hops: tuple[Hop, ...],
        ring: Axis,
        kernel: BlockKernel,
    ) -> torch.Tensor:
        merged = _Merged(query)
        for rank, both in _going_round(torch.stack((key, value)), ring):
            hop = hops[rank]
            key_part, value_part = both[:, :, :, hop.keys]
            merged.add(hop, *kernel.forward(query[:, :, hop.queries], key_part, value_part, hop))
        out = merged.out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, merged.log_sum)
        ctx.hops, ctx.ring, ctx.kernel = hops, ring, kernel
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        query, key, value, out, log_sum = ctx.saved_tensors
        ring: Axis = ctx.ring
        dq = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        passing: Passing | None = None
        for rank, both in _going_round(torch.stack((key, value)), ring):
            hop: Hop = ctx.hops[rank]
            of, (key_part, value_part) = hop.queries, both[:, :, :, hop.keys]
            dq_part, dk_part, dv_part = ctx.kernel.backward(
                grad[:, :, of], query[:, :, of], key_part, value_part, out[:, :, of], log_sum[:, :, of], hop
            )
            dq[:, :, of] += dq_part
            # What the ranks before this one have gathered for these keys and values.
            gathered = both.new_zeros(both.shape, dtype=torch.float32) if passing is None else passing.wait()
            gathered[0][:, :, hop.keys] += dk_part
            gathered[1][:, :, hop.keys] += dv_part
            passing = Passing(gathered, ring)
        assert passing is not None
        dk, dv = passing.wait().to(key.dtype)  # home: the last addend was made by the rank before
        return dq.to(query.dtype), dk, dv, None, None, None


def _going_round(both: torch.Tensor, ring: Axis) -> Iterator[tuple[int, torch.Tensor]]:
    """Keys and values (2, B, G, T/R, K) of every rank, with its number, each while the next are under way."""
    for number in range(ring.size):
        passing = Passing(both, ring) if number + 1 < ring.size else None
        yield (ring.rank - number) % ring.size, both
        if passing is not None:
            both = passing.wait()


class _Merged:
    """What the hops so far give: values mixed over all their keys, in fp32."""

    def __init__(self, query: torch.Tensor) -> None:
        self.out = torch.zeros(query.shape, dtype=torch.float32, device=query.device)
        self.log_sum = torch.full(query.shape[:-1], float("-inf"), device=query.device)

    def add(self, hop: Hop, out: torch.Tensor, log_sum: torch.Tensor) -> None:
        """Adds a hop's output (B, H, S', K) and log-sum-exp (B, H, S')."""
        if hop.blind is not None:
            log_sum = log_sum.masked_fill(hop.blind, float("-inf"))
            out = out.masked_fill(hop.blind.unsqueeze(-1), 0.0)
        before, mixed = self.log_sum[:, :, hop.queries], self.out[:, :, hop.queries]
        total = torch.logaddexp(before, log_sum)
        # Rows that have seen nothing so far: -inf less -inf is no number.
        finite = total.masked_fill(total == float("-inf"), 0.0)
        mixed.mul_((before - finite).exp_().unsqueeze(-1)).addcmul_(out, (log_sum - finite).exp_().unsqueeze(-1))
        before.copy_(total)


def build_mixer(ring: Axis, dropout: HeadDropout | None, first_head: int) -> Mixer:
    """Attention between the projections, over whole sequences or over a ring's parts of them."""
    return DotProduct(dropout, first_head) if ring.size == 1 else RingDotProduct(ring, dropout, first_head)
