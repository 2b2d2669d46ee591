"""Segments of a run: which plan was in force at which steps.

A run has one plan and so one segment, unless a resume changed something that the order depends on and the user allowed it. The
new plan then takes over at that step, in a new segment: every source goes on behind the samples that it has given, the blend
and its stages behind the tokens that were read. Where a source's shards did not change, nothing of its epoch is repeated or
skipped; where they did, its windows stand in another order from there on, and some of them come twice in that epoch. A batch of
another size starts a segment too, of the same plan. The list lies in every checkpoint, so which samples were in a step stays
answerable.

Alternative not taken: a new plan from its own first sample; it would read the same first samples again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from pretrain.data.plan import Origin, Plan
from pretrain.settings import NonNegativeInt, PositiveInt, Settings


class PlanSegment(Settings):
    """Some steps under one plan and batch size."""

    first_step: NonNegativeInt = 0
    """Steps before the segment."""
    first_sample: NonNegativeInt = 0
    """Samples that the run had consumed before it."""
    position: NonNegativeInt = 0
    """Position of its first sample in the plan; another one than `first_sample` where the sequence length was changed."""
    taken: dict[str, int] = Field(default_factory=dict)
    """Samples that each source had given before it, in windows of this segment's length."""
    global_batch_sequences: PositiveInt
    plan_hash: str
    """At its first sample."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What the plan depends on beside the shards: seed, sequence length, blend and order."""

    @property
    def origin(self) -> Origin:
        """Where its plan takes over."""
        return Origin(self.position, self.taken)

    def sample(self, step: int) -> int:
        """Number of the first sample of a step, over the whole run."""
        return self.first_sample + (step - self.first_step) * self.global_batch_sequences

    def place(self, sample: int) -> int:
        """Position of a sample in the segment's plan."""
        return self.position + sample - self.first_sample


def segment_of(segments: Sequence[PlanSegment], step: int) -> PlanSegment:
    """The segment that a step (0 for the first one) lies in."""
    return next(segment for segment in reversed(segments) if segment.first_step <= step or segment is segments[0])


def first_segment(plan: Plan, global_batch_sequences: int) -> PlanSegment:
    """The segment that a fresh run starts with."""
    return PlanSegment(global_batch_sequences=global_batch_sequences, plan_hash=plan.hash_at(0), facts=dict(plan.facts))


def next_segment(
    before: PlanSegment, plan: Plan, global_batch_sequences: int, *, step: int, sample: int, taken: Mapping[str, int]
) -> PlanSegment:
    """The segment in which a changed plan takes over.

    Args:
        before: the segment that ends.
        plan: the new one.
        global_batch_sequences: of the steps to come.
        step: steps that were done.
        sample: samples that were consumed by them.
        taken: of `sample`, those of each source.
    """
    old_length = int(before.facts.get("sequence_length", plan.sequence_length))

    def converted(samples: int) -> int:
        return samples * old_length // plan.sequence_length

    origin = Origin(converted(before.place(sample)), {name: converted(count) for name, count in taken.items()})
    return PlanSegment(
        first_step=step,
        first_sample=sample,
        position=origin.position,
        taken=dict(origin.taken),
        global_batch_sequences=global_batch_sequences,
        plan_hash=plan.from_origin(origin).hash_at(origin.position),
        facts=dict(plan.facts),
    )
