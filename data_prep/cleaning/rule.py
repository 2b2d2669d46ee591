"""What a rule is: a name, its published source, the settings that hold its threshold, and a pure function."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from data_prep.cleaning.batch import Batch

KEPT = -1


@dataclass(frozen=True)
class Rule:
    """One rule of a step."""

    name: str
    source: str
    """Paper and section."""
    thresholds: tuple[str, ...]
    """Fields of the step's settings that it reads."""
    effect: Literal["document", "line", "mask"] = "document"
    """What goes: the document, lines of it, or what stood at some places."""
    removes: Callable[[Batch, Any], np.ndarray] | None = None
    """(D,) whether a document goes, or (L,) whether a line does; None where a step decides otherwise."""
    version: int = 1
    """Raised when the same threshold gives another verdict: prepared folders of older versions are not reused."""


@dataclass
class Outcome:
    """What a step did to a batch."""

    removed: np.ndarray
    """(D,) the place of the first rule that removes a document, in the step's order; KEPT where none does."""
    edits: dict[int, "Edit"] = field(default_factory=dict)
    """Of documents that were kept and changed."""


@dataclass
class Edit:
    """A document that a step changed."""

    text: str
    by_rule: dict[str, "RuleEdit"]


@dataclass
class RuleEdit:
    """What one rule changed in a document."""

    places: int
    """Lines that went, or places that were masked."""
    removed_bytes: int
    example: str
    """What went; of masks, what stands there now and around it."""


def first_rule(rules: Sequence[Rule], batch: Batch, settings: Any) -> np.ndarray:
    """(D,) the place of the first rule that removes each document, KEPT where none does or the document went before."""
    found = np.full(len(batch), KEPT, dtype=np.int8)
    came_in = batch.alive
    for place, rule in enumerate(rules):
        if rule.effect == "document" and rule.removes is not None:
            batch.alive = came_in & (found == KEPT)  # what an earlier rule removed is not measured again
            found[batch.alive & rule.removes(batch, settings)] = place
    batch.alive = came_in
    return found


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """(D,) shares; 0 of nothing."""
    return part / np.maximum(whole, 1)
