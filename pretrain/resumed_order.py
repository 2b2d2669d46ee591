"""The order of samples where a run goes on: the one that it left, or a change that the user allowed, in a segment of its own.

A resumed run must meet the order that it left, or it would repeat some samples and skip others without a word. What the order
depends on is in the plan's hash; a change of it is refused, unless the launch allowed it: `--allow-change data.order` (or of
another field of `data`, `train` or the seed). `pretrain.data.plan_segments` says what a new segment keeps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

from pretrain.checkpoint.format import RunState
from pretrain.data.feed import Feed
from pretrain.data.plan_segments import PlanSegment, first_segment, next_segment
from pretrain.errors import DataError
from pretrain.settings import is_under

ORDER_FIELDS = ("data", "train", "run.seed")
"""What an allowed change must be of for another order to be no surprise."""


@dataclass(frozen=True)
class RunOrder:
    """The segments of a run, the last one being under way."""

    segments: tuple[PlanSegment, ...]
    told: str | None = None
    """For the user, where a segment begins."""


def fresh_order(feed: Feed, global_batch_sequences: int) -> RunOrder:
    """The order of a run that begins; the feed stands at its start."""
    segment = first_segment(feed.plan, global_batch_sequences)
    feed.enter(segment)
    return RunOrder((segment,))


def resumed_order(
    feed: Feed, state: RunState, step: int, global_batch_sequences: int, allowed: Sequence[str], folder: str
) -> RunOrder:
    """The order of a run that goes on; the feed stands in its last segment.

    Args:
        feed: opened with the config of this launch.
        state: of the checkpoint.
        step: of the checkpoint.
        global_batch_sequences: of the steps to come.
        allowed: fields that this launch may change.
        folder: `data.dir`, for messages.

    Raises:
        DataError: the order is another one, and nothing allows it, or the checkpoint does not say where sources stand.
    """
    segments = state.segments or (first_segment(feed.plan, global_batch_sequences),)
    last = segments[-1]
    feed.enter(last).await_position(last.place(state.next_sample), Event())
    same = feed.hash_at(state.next_sample) == state.plan_hash
    if same and last.global_batch_sequences == global_batch_sequences:
        return RunOrder(segments)
    if not same and not any(is_under(name, ORDER_FIELDS) for name in allowed):
        raise DataError(
            f"{folder}: the training samples or their order are not those of the run up to step {step}; going on would "
            "repeat some and skip others. Put data and settings back, start a new run (--set name=NEW-NAME), or go on "
            "with the new order: --allow-change data.order"
        )
    if not state.source_samples and not same and len(feed.plan.sources) > 1:
        raise DataError(
            f"{folder}: the checkpoint of step {step} does not say how many samples each source had given, so that a new order "
            "cannot go on behind them; put data and settings back, or start a new run (--set name=NEW-NAME)"
        )
    taken = state.source_samples or feed.counts(state.next_sample)
    segment = next_segment(
        last, feed.plan, global_batch_sequences, step=step, sample=state.next_sample, taken=taken
    )  # fmt: skip
    feed.enter(segment)
    return RunOrder((*segments, segment), _told(segment, same))


def _told(segment: PlanSegment, same: bool) -> str:
    where = f"from step {segment.first_step:,} (sample {segment.first_sample:,}) on"
    if same:
        return (
            f"{where} a step takes {segment.global_batch_sequences:,} sequences; the order of samples goes on as it was"
        )
    given = ", ".join(f"{count:,} of {name}" for name, count in segment.taken.items())
    return (
        f"{where} the order of samples is another one, as was allowed; each source goes on behind what it has given ({given}). "
        "Sources whose shards, seed or sequence length changed stand in another order: some of their windows come twice in this "
        "epoch, others not at all"
    )
