"""The order of a pipeline stage's work in one step, as a pure function of stages, stage and micro-batches.

ZB-H1 (Qi et al. 2023, Zero bubble pipeline parallelism, section 2): backward is split into the pass for inputs, for which the
stage before waits, and the pass for weights, for which nobody waits. A stage starts as in 1F1B, puts off weight passes until as
many wait as there are stages before it, and fills the bubble at the end with them.

With F, B, W seconds for the three passes of a micro-batch, p stages and m >= p micro-batches, a step takes
    1F1B     (m + p - 1) (F + B + W)                  bubble (p - 1) / (m + p - 1)
    ZB-H1    m (F + B + W) + (p - 1) (F + B - W)      bubble (p - 1) (F + B - W) / all of it
where F = B = W a third of 1F1B's bubble is left (p = 4, m = 8: 27.3 % and 11.1 %).

Memory: stage s of p holds, of at most p - s micro-batches, all that backward needs, and of at most s + 1 what their weight passes
need: never more than p micro-batches' together, which is what 1F1B's first stage holds. Not with recomputation: it holds little
until backward, and inputs and gradients of all linear layers from there to the weight pass.
"""

from dataclasses import dataclass
from typing import Literal

Pass = Literal["forward", "backward", "weight"]


@dataclass(frozen=True)
class Work:
    """One pass of a stage over one micro-batch; `backward` is that for inputs."""

    kind: Pass
    micro_batch: int


def zb_h1(stages: int, stage: int, micro_batches: int) -> list[Work]:
    """The order of ZB-H1 on a stage, counted from 0."""
    order: list[Work] = []
    forwards = min(stages - stage - 1, micro_batches)
    order += [Work("forward", n) for n in range(forwards)]
    weights = 0
    for backward in range(micro_batches):
        if forwards < micro_batches:
            order.append(Work("forward", forwards))
            forwards += 1
        order.append(Work("backward", backward))
        if backward + 1 - weights > stage:
            order.append(Work("weight", weights))
            weights += 1
    return order + [Work("weight", n) for n in range(weights, micro_batches)]
