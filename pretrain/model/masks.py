"""Who attends to whom, from document numbers.

Legend: B sequences, S target positions, T source positions. `documents` (B, S) numbers the documents of a window; -1 is padding.

A mask is a pure function of integers in the carry. The layers of a stage share one `Masks`, which keeps the last answer, so
that it is computed once a micro-batch and stage instead of once a layer; a recomputed layer asks again and gets the same.

On a CPU the integers are looked at: where each window is one document, torch's fused causal kernel runs without a mask. On an
accelerator a look would wait for the device, so the mask is always given.
Not taken: FlexAttention (compiled code alone is fast, and there is none on a CPU); one kernel call a document (on a CPU, at 256
positions, it takes twice the time of a mask, which itself costs 0 to 5 % of attention, and the same at 512).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mask:
    """What a query sees."""

    additive: torch.Tensor | None = None
    """(B, 1, S, T), 0 where it may look and -inf elsewhere, in the type of the queries; None: everywhere, or `causal`."""
    causal: bool = False
    """Query i sees keys 0 to i alone, in place of `additive`."""


class Masks:
    """The masks of a model, with the last of each kind kept."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[torch.Tensor, ...], tuple[object, ...], Mask]] = {}

    def causal(self, documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        """For (B, S) target documents: earlier positions of the same document, and the position itself."""
        return self._remember("causal", _causal, dtype, documents)

    def source(self, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        """For (B, T) source documents: all positions of the same document."""
        return self._remember("source", _source, dtype, source_documents)

    def cross(self, documents: torch.Tensor, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
        """From (B, S) targets to (B, T) sources of the same document; a padded target sees every source."""
        return self._remember("cross", _cross, dtype, documents, source_documents)

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


def _causal(documents: torch.Tensor, dtype: torch.dtype) -> Mask:
    if documents.device.type == "cpu":
        # A window is one document when no position but padding opens a new one. Padding at its end then sees the
        # document, which changes nothing: its outputs are never read.
        following, before = documents[:, 1:], documents[:, :-1]
        if bool(((following == before) | (following < 0)).all()):
            return Mask(causal=True)
    allowed = documents.unsqueeze(2) == documents.unsqueeze(1)
    return Mask(_additive(allowed.tril_(), dtype))


def _source(source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
    if source_documents.device.type == "cpu" and bool((source_documents == source_documents[:, :1]).all()):
        return Mask()
    return Mask(_additive(source_documents.unsqueeze(2) == source_documents.unsqueeze(1), dtype))


def _cross(documents: torch.Tensor, source_documents: torch.Tensor, dtype: torch.dtype) -> Mask:
    targets, sources = documents.unsqueeze(2), source_documents.unsqueeze(1)
    allowed = (sources >= 0) & ((targets == sources) | (targets < 0))
    if documents.device.type == "cpu" and bool(allowed.all()):
        return Mask()
    # A row without any key would give NaN: a window of padding alone, or a target whose source is missing.
    return Mask(_additive(allowed | ~allowed.any(-1, keepdim=True), dtype))


def _additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, S, T) bool to (B, 1, S, T) of 0 and -inf."""
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf")).unsqueeze(1)
