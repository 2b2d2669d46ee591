"""Who attends to whom, from document numbers.

Legend: B sequences, S target positions, T source positions. `documents` (B, S) numbers the documents of a window; -1 is padding.

A mask is a pure function of integers in the carry. The layers of a stage share one `Masks`, which keeps the last answer, so
that it is computed once a micro-batch and stage instead of once a layer; a recomputed layer asks again and gets the same.

Where a look at the integers is cheaper than a mask, they are looked at: where each window is one document, torch's fused causal
kernel runs without a mask. On a CPU it always is; on an accelerator a look waits for the device, which pays for long sequences
alone. Over a ring of ranks a mask is made of hops (ring_masks.py).
Not taken: FlexAttention (compiled code alone is fast, and there is none on a CPU); one kernel call a document (on a CPU, at 256
positions, it takes twice the time of a mask, which itself costs 0 to 5 % of attention, and the same at 512).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

LOOK_FROM = 1 << 24
"""Elements of a mask from which an accelerator is waited for: filling them takes longer."""


@dataclass(frozen=True)
class Hop:
    """The keys of one rank of a ring, and which of this rank's queries see them."""

    queries: slice
    """Of this rank's S / ring queries, those that see any of the keys in a sequence of one document."""
    keys: slice
    """Of that rank's T / ring keys, those that are seen by any of the queries in a sequence of one document."""
    mask: "Mask"
    """Between these queries and keys."""
    blind: torch.Tensor | None
    """(B, 1, S') bool: queries that see none of the keys; None: there is none."""
    query_positions: torch.Tensor
    """(S',) int64: places of the queries in the sequence."""
    key_positions: tuple[range, ...]
    """Runs of places of the keys in theirs."""


@dataclass(frozen=True)
class Mask:
    """What a query sees."""

    additive: torch.Tensor | None = None
    """(B, 1, S, T), 0 where it may look and -inf elsewhere, in the type of the queries; None: everywhere, or `causal`."""
    causal: bool = False
    """Query i sees keys 0 to i alone, in place of `additive`."""
    hops: tuple[Hop, ...] = ()
    """Over a ring, in place of both: by the rank that the keys come from."""


class Masks:
    """The masks of a model, with the last of each kind kept."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[torch.Tensor, ...], tuple[object, ...], Mask]] = {}

    def causal(self, documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        """For (B, S) target documents: earlier positions of the same document, and the position itself."""
        return self._remember("causal", self._causal, dtype, documents)

    def source(self, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        """For (B, T) source documents: all positions of the same document."""
        return self._remember("source", self._source, dtype, source_documents)

    def cross(self, documents: torch.Tensor, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        """From (B, S) targets to (B, T) sources of the same document; a padded target sees every source."""
        return self._remember("cross", self._cross, dtype, documents, source_documents)

    def _remember(self, kind: str, make: Callable[..., Mask], dtype: torch.dtype, *documents: torch.Tensor) -> Mask:
        # The tensors are kept too: an object that lives cannot lend its identity to another, and the version tells
        # whether it was written to since.
        state = (dtype, *(0 if tensor.is_inference() else tensor._version for tensor in documents))
        kept = self._kept.get(kind)
        if kept and kept[1] == state and all(a is b for a, b in zip(kept[0], documents, strict=True)):
            return kept[2]
        mask = make(*documents, dtype)
        self._kept[kind] = (documents, state, mask)
        return mask

    def _causal(self, documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        if sees_one_document(documents, documents.shape[1]):
            return Mask(causal=True)
        allowed = documents.unsqueeze(2) == documents.unsqueeze(1)
        return Mask(additive(allowed.tril_(), dtype))

    def _source(self, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        if sees_one_source(source_documents, source_documents.shape[1]):
            return Mask()
        return Mask(additive(source_documents.unsqueeze(2) == source_documents.unsqueeze(1), dtype))

    def _cross(self, documents: torch.Tensor, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        allowed = sees_across(documents, source_documents)
        if is_worth_a_look(documents, source_documents.shape[1]) and bool(allowed.all()):
            return Mask()
        return Mask(additive(allowed, dtype))


def is_worth_a_look(documents: torch.Tensor, keys: int) -> bool:
    """Whether (B, S) documents should be looked at before a mask of them and so many keys is made."""
    return documents.device.type == "cpu" or documents.numel() * keys >= LOOK_FROM


def sees_one_document(documents: torch.Tensor, keys: int) -> bool:
    """Whether causal attention of (B, S) documents needs no mask, as far as is worth a look."""
    # A window is one document when no position but padding opens a new one. Padding at its end then sees the
    # document, which changes nothing: its outputs are never read.
    following, before = documents[:, 1:], documents[:, :-1]
    return is_worth_a_look(documents, keys) and bool(((following == before) | (following < 0)).all())


def sees_one_source(source_documents: torch.Tensor, keys: int) -> bool:
    """Whether attention among (B, T) sources needs no mask, as far as is worth a look."""
    return is_worth_a_look(source_documents, keys) and bool((source_documents == source_documents[:, :1]).all())


def sees_across(documents: torch.Tensor, source_documents: torch.Tensor) -> torch.Tensor:
    """(B, S) targets and (B, T) sources to (B, S, T): the source that each target sees."""
    targets, sources = documents.unsqueeze(2), source_documents.unsqueeze(1)
    allowed = (sources >= 0) & ((targets == sources) | (targets < 0))
    # A row without any key would give NaN: a window of padding alone, or a target whose source is missing.
    return allowed | ~allowed.any(-1, keepdim=True)


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, S, T) bool to (B, 1, S, T) of 0 and -inf."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf")).unsqueeze(1)
