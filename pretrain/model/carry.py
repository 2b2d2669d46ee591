"""What passes between layers, and its law.

A layer maps a Carry to a Carry: a dict of named tensors. Between two pipeline stages the carry is sent as a tuple, in the order
of `FIELDS`. The law, checked when a model is built, before any rank computes:

1. a layer reads only what an earlier layer (or the batch) put there;
2. every floating-point tensor that is passed on is read by a later layer, for it must come back with a gradient
   (DeepSpeed's pipeline asserts it); memory of an encoder is dropped by the last layer that attends to it;
3. everything else is an integer tensor (bool cannot be sent); no rotary table or mask crosses;
4. at the end `logits` or `losses` is left, and where there are experts `loads`, and `auxiliary` if they add to the objective.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

Carry = dict[str, torch.Tensor]

FLOAT_FIELDS = ("hidden", "memory", "auxiliary", "logits", "losses")
"""Of B sequences, L positions of the stream and C of the context rank (parallel/sequence.py): hidden (B, L, D); memory (B,
L_source, D), the encoder's output; auxiliary (B,), what experts add to the objective of each sequence, a rank's addend of it
over the context group; logits (B, C, V/tp); losses (3, B, C), the three of `TokenLosses`, where the head goes through the
tokens in tiles."""
INTEGER_FIELDS = ("tokens", "positions", "documents", "source_tokens", "source_documents", "labels", "sample", "loads")
"""tokens, positions (B, C): ids, positions within the document. documents (B, S), of whole sequences: number of the document
within the window (-1: padding). source_tokens (B, C_source), source_documents (B, S_source): the same of the encoder's input.
labels (B, C): only where the head makes losses. sample (B,): the global sample number n, the key of dropout.
loads (M, E + 1): for each of M layers with E experts, how many of the rank's tokens chose each, and how many choices were
dropped."""
ENDS = (frozenset({"logits"}), frozenset({"losses"}))
"""What may be left at the end, beside what experts leave."""
OF_EXPERTS = frozenset({"auxiliary", "loads"})
FIELDS = FLOAT_FIELDS + INTEGER_FIELDS


@dataclass(frozen=True)
class Flow:
    """What a layer does to the carry: the names that it reads, adds (or replaces), and drops."""

    reads: frozenset[str]
    adds: frozenset[str] = frozenset()
    drops: frozenset[str] = frozenset()


class CarryLawError(ValueError):
    """A list of layers that could not be cut into pipeline stages at every place."""


def trace_fields(inputs: Iterable[str], flows: Sequence[tuple[str, Flow]]) -> list[tuple[str, ...]]:
    """Names that are present before each layer and after the last, in sending order; checks the law.

    Args:
        inputs: names that the batch provides.
        flows: (layer name, flow) in order.

    Raises:
        CarryLawError: names the layer, the field and the rule.
    """
    present = set(inputs)
    boundaries = [_ordered(present)]
    for index, (layer, flow) in enumerate(flows):
        for name in sorted(flow.reads | flow.drops):
            if name not in present:
                raise CarryLawError(f"layer {layer} reads `{name}`, which no earlier layer passes on")
        present = (present - flow.drops) | flow.adds
        for name in sorted(present & set(FLOAT_FIELDS)):
            if (
                index + 1 < len(flows)
                and name != "auxiliary"
                and not any(name in later.reads for _, later in flows[index + 1 :])
            ):
                raise CarryLawError(
                    f"`{name}` leaves layer {layer} but no later layer reads it: it would get no gradient"
                )
        boundaries.append(_ordered(present))
    if present - OF_EXPERTS not in ENDS:
        raise CarryLawError(f"the last layer must leave `logits` or `losses` alone, not {sorted(present)}")
    return boundaries


def _ordered(names: set[str]) -> tuple[str, ...]:
    unknown = names - set(FIELDS)
    if unknown:
        raise CarryLawError(f"unknown fields in the carry: {sorted(unknown)}")
    return tuple(name for name in FIELDS if name in names)
