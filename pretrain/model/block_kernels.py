"""Attention of some queries to some of their keys: what a ring adds up hop by hop.

Legend: B sequences, S' queries and T' keys of a hop, H query heads, G key-value heads, K width of a head.

Forward gives the values mixed over these keys alone, and the logarithm of the sum that they were divided by (log-sum-exp), by
which hops can be merged. Backward is given the *final* output and log-sum-exp, over all keys of the queries: probabilities are
then exp(score - log-sum-exp), those of the whole row, so that each hop's gradients are addends of the whole gradients (Liu et
al. 2023, Ring attention with blockwise transformers, section 3; Dao et al. 2022, FlashAttention, appendix B, for the backward).

A row that sees none of a hop's keys must weigh nothing: its log-sum-exp is -inf. Fused kernels do not say so by themselves (the
one of the CPU gives 0), which is why a hop names its blind rows.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pretrain.model.dropout import HeadDropout
from pretrain.model.masks import Hop

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class BlockKernel(Protocol):
    """Attention of a hop, forward and backward."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hop: Hop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, S', K), twice (B, G, T', K) to the mixed values (B, H, S', K) and their log-sum-exp (B, H, S'), fp32."""
        ...

    def backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        log_sum: torch.Tensor,
        hop: Hop,
    ) -> Gradients:
        """Gradients of query, key and value from those of the output; out and log_sum are over all keys of the queries."""
        ...


class CpuFlash:
    """Torch's fused kernel of the CPU; it takes grouped heads as they are."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hop: Hop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `BlockKernel`."""
        mask = hop.mask
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, mask.causal, attn_mask=mask.additive
        )

    def backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        log_sum: torch.Tensor,
        hop: Hop,
    ) -> Gradients:
        """See `BlockKernel`."""
        mask = hop.mask
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            grad, query, key, value, out, log_sum, 0.0, mask.causal, attn_mask=mask.additive
        )


@dataclass(frozen=True)
class InTheOpen:
    """By the formula, with the hop's probabilities in memory: for dropout, and where no fused kernel tells the log-sum-exp.

    With a mask D of dropout, out = sum of (P o D) V, dV = (P o D)^T dO, dP = (dO V^T) o D, and dS = P o (dP - delta) with delta =
    sum over K of dO o O: the rowsum of P o dP, whatever was dropped.
    """

    dropout: HeadDropout | None = None
    """None: nothing is dropped."""
    first_head: int = 0
    """The model's number of the first head that is seen here."""
    sample: torch.Tensor | None = None
    """(B,) sample numbers, where probabilities are dropped."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hop: Hop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `BlockKernel`."""
        scores = _scores(query, key, hop)
        log_sum = scores.logsumexp(-1)
        p = _exp(scores, log_sum)
        kept = self._kept(p, hop)
        p = p if kept is None else p * kept
        return p.to(value.dtype) @ _per_query_head(value, query), log_sum

    def backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        log_sum: torch.Tensor,
        hop: Hop,
    ) -> Gradients:
        """See `BlockKernel`."""
        p = _exp(_scores(query, key, hop), log_sum)
        kept = self._kept(p, hop)
        dp = (grad @ _per_query_head(value, query).mT).float()
        used, dp = (p, dp) if kept is None else (p * kept, dp * kept)
        delta = (grad.float() * out.float()).sum(-1, keepdim=True)
        ds = (p * (dp - delta) * query.shape[-1] ** -0.5).to(query.dtype)
        dv = _per_key_head(used.to(grad.dtype).mT @ grad, value)
        return ds @ _per_query_head(key, query), _per_key_head(ds.mT @ query, key), dv

    def _kept(self, p: torch.Tensor, hop: Hop) -> torch.Tensor | None:
        """(B, H, S', T'): 0 where a probability is dropped, else what makes up for it."""
        if self.dropout is None:
            return None
        heads = range(self.first_head, self.first_head + p.shape[1])
        keep, factor = self.dropout.keep(self.sample, heads, hop.query_positions, hop.key_positions)
        return keep * factor


def _scores(query: torch.Tensor, key: torch.Tensor, hop: Hop) -> torch.Tensor:
    """(B, H, S', T') fp32; -inf where a query must not look."""
    scores = (query @ _per_query_head(key, query).mT).float() * query.shape[-1] ** -0.5
    if hop.mask.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu_(1)
        return scores.masked_fill_(later, float("-inf"))
    return scores if hop.mask.additive is None else scores + hop.mask.additive


def _exp(scores: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    """exp(scores - log_sum), and 0 in rows that see nothing."""
    return (scores - log_sum.masked_fill(log_sum == float("-inf"), 0.0).unsqueeze(-1)).exp_()


def _per_query_head(heads: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """(B, G, T', K) of key-value heads to (B, H, T', K)."""
    repeats = query.shape[1] // heads.shape[1]
    return heads if repeats == 1 else heads.repeat_interleave(repeats, 1)


def _per_key_head(gradients: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
    """(B, H, T', K) gradients summed over the queries of each key-value head, (B, G, T', K)."""
    return gradients.unflatten(1, (heads.shape[1], -1)).sum(2)


class CudaEfficient:
    """Torch's memory-efficient kernel of CUDA devices; its heads are not grouped, and a mask is laid out for each."""

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hop: Hop
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `BlockKernel`."""
        key, value = _per_query_head(key, query), _per_query_head(value, query)
        out, log_sum, _, _ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, _bias(query, hop), True, 0.0, hop.mask.causal
        )
        return out, log_sum[..., : query.shape[2]]  # the kernel pads rows to a multiple of 32

    def backward(
        self,
        grad: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        out: torch.Tensor,
        log_sum: torch.Tensor,
        hop: Hop,
    ) -> Gradients:
        """See `BlockKernel`."""
        every_key, every_value = _per_query_head(key, query), _per_query_head(value, query)
        rows = -query.shape[2] % 32
        padded = torch.nn.functional.pad(log_sum, (0, rows), value=float("inf")).contiguous()
        nothing_drawn: Any = torch.zeros((), dtype=torch.int64, device=query.device)
        dq, dk, dv, _ = torch.ops.aten._scaled_dot_product_efficient_attention_backward(
            *(grad, query, every_key, every_value, _bias(query, hop), out, padded, nothing_drawn, nothing_drawn),
            *(0.0, (True, True, True, False), hop.mask.causal),
        )
        return dq, _per_key_head(dk, key), _per_key_head(dv, value)


def _bias(query: torch.Tensor, hop: Hop) -> torch.Tensor | None:
    """The hop's mask for every head, its rows aligned as the kernel asks; the padding is cut off again."""
    mask = hop.mask.additive
    if mask is None:
        return None
    keys = mask.shape[-1]
    aligned = torch.nn.functional.pad(mask, (0, -keys % 16))[..., :keys]
    return aligned.expand(-1, query.shape[1], -1, -1)


def fused_kernel(device: torch.device) -> BlockKernel:
    """Of a device, without dropout."""
    return CudaEfficient() if device.type == "cuda" else CpuFlash()
