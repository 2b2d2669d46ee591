"""The masks of a rank of a ring: for the keys of each rank, which of this rank's queries see them.

Rank r of R holds chunks r and 2R-1-r of 2R (parallel/sequence.py), so that causal attention is the same work for every rank:
with its own keys, as of any sequence; with those of a rank before it, all its queries see the first of the two chunks; with
those of a rank behind it, its second chunk of queries sees both. These halves need no mask where a sequence is one document.
Without causality every query meets every key.

Hops that no query of a packed window sees are computed all the same: to leave them out the device would have to be waited for.
"""

import torch

from pretrain.model.masks import (
    Hop,
    Mask,
    Masks,
    additive,
    is_worth_a_look,
    sees_across,
    sees_one_document,
    sees_one_source,
)
from pretrain.parallel.mesh import Axis
from pretrain.parallel.sequence import SequenceSplit, zigzag, zigzag_chunks


class RingMasks(Masks):
    """The masks of one rank of a ring, made of hops, one for each rank."""

    def __init__(self, ring: Axis) -> None:
        super().__init__()
        self._ring = ring

    def _causal(self, documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        length, own = documents.shape[1], self._ring.rank
        one_document = sees_one_document(documents, length)
        hops = []
        for rank in range(self._ring.size):
            chunks = zigzag_chunks(length, rank, self._ring.size)
            half = len(chunks[0])
            queries = slice(half, None) if rank > own else slice(None)
            keys, seen = (slice(half), chunks[:1]) if rank < own else (slice(None), chunks)
            rows, columns = self._positions(documents, own)[queries], self._positions(documents, rank)[keys]
            if one_document:
                hops.append(Hop(queries, keys, Mask(causal=rank == own), None, rows, seen))
                continue
            allowed = documents[:, rows].unsqueeze(2) == documents[:, columns].unsqueeze(1)
            allowed = allowed.tril_() if rank == own else allowed
            hops.append(_masked(queries, keys, allowed, dtype, rows, seen))
        return Mask(hops=tuple(hops))

    def _source(self, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        rows, allowed = self._positions(source_documents, self._ring.rank), None
        if not sees_one_source(source_documents, source_documents.shape[1]):
            allowed = source_documents[:, rows].unsqueeze(2) == source_documents.unsqueeze(1)
        return self._every_hop(rows, source_documents, allowed, dtype)

    def _cross(self, documents: torch.Tensor, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        rows = self._positions(documents, self._ring.rank)
        allowed = sees_across(documents[:, rows], source_documents)
        if is_worth_a_look(documents, source_documents.shape[1]) and bool(allowed.all()):
            return self._every_hop(rows, source_documents, None, dtype)
        return self._every_hop(rows, source_documents, allowed, dtype)

    def _every_hop(
        self, rows: torch.Tensor, of_keys: torch.Tensor, allowed: torch.Tensor | None, dtype: torch.dtype
    ) -> Mask:
        """All queries (S / ring,) to all keys; allowed (B, S / ring, T), None: everywhere."""
        hops = []
        for rank in range(self._ring.size):
            seen = zigzag_chunks(of_keys.shape[1], rank, self._ring.size)
            if allowed is None:
                hops.append(Hop(slice(None), slice(None), Mask(), None, rows, seen))
            else:
                part = allowed[:, :, self._positions(of_keys, rank)]
                hops.append(_masked(slice(None), slice(None), part, dtype, rows, seen))
        return Mask(hops=tuple(hops))

    def _positions(self, documents: torch.Tensor, rank: int) -> torch.Tensor:
        return zigzag(documents.shape[1], rank, self._ring.size, documents.device)


def _masked(
    queries: slice,
    keys: slice,
    allowed: torch.Tensor,
    dtype: torch.dtype,
    query_positions: torch.Tensor,
    key_positions: tuple[range, ...],
) -> Hop:
    """A hop whose mask allows (B, S', T')."""
    blind = ~allowed.any(-1).unsqueeze(1)
    return Hop(queries, keys, Mask(additive(allowed, dtype)), blind, query_positions, key_positions)


def build_masks(sequence: SequenceSplit) -> Masks:
    """Those of a rank."""
    return Masks() if sequence.ring.size == 1 else RingMasks(sequence.ring)
