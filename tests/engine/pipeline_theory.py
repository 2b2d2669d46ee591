"""How long a pipeline's step takes in theory: stages that do their passes in a given order, each as soon as it may."""

from collections.abc import Callable, Sequence

from pretrain.engine.schedules import Pass, Work

Order = Sequence[Work]


def one_f_one_b(stages: int, stage: int, micro_batches: int) -> list[Work]:
    """Narayanan et al. 2021, section 2.2.2, with the two halves of each backward pass one behind the other."""
    order = [Work("forward", n) for n in range(min(stages - stage - 1, micro_batches))]
    for n in range(micro_batches):
        if len([w for w in order if w.kind == "forward"]) < micro_batches:
            order.append(Work("forward", len([w for w in order if w.kind == "forward"])))
        order += [Work("backward", n), Work("weight", n)]
    return order


def duration(orders: Sequence[Order], seconds: Callable[[int, Work], float], sent_after: Pass) -> float:
    """Seconds until the last stage is done; a gradient goes to the stage before once the pass `sent_after` is over.

    `seconds(stage, work)` is the length of a pass. Raises ValueError where the orders wait for each other.
    """
    clocks, done = [0.0] * len(orders), [0] * len(orders)
    ends: dict[tuple[int, Pass, int], float] = {}
    while any(done[s] < len(order) for s, order in enumerate(orders)):
        before = sum(done)
        for stage, order in enumerate(orders):
            while done[stage] < len(order):
                work = order[done[stage]]
                ready = _ready(work, stage, len(orders), ends, sent_after)
                if ready is None:
                    break
                clocks[stage] = max(clocks[stage], ready) + seconds(stage, work)
                ends[stage, work.kind, work.micro_batch] = clocks[stage]
                done[stage] += 1
        if sum(done) == before:
            raise ValueError("stages wait for each other")
    return max(clocks)


def _ready(
    work: Work, stage: int, stages: int, ends: dict[tuple[int, Pass, int], float], sent_after: Pass
) -> float | None:
    if work.kind == "forward" and stage > 0:
        return ends.get((stage - 1, "forward", work.micro_batch))
    if work.kind == "backward" and stage + 1 < stages:
        return ends.get((stage + 1, sent_after, work.micro_batch))
    return 0.0
