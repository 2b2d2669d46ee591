"""What to do about a step that went wrong. Engines skip a step whose gradient is not finite, on all ranks together, and
leave the parameters as they were; here it is judged whether the run may go on.

One such step is an accident (an overflow in bf16, a freak batch). Many in a row never end: the parameters do not
change, so the cause does not either unless it lies in the data.
"""

from dataclasses import dataclass

from pretrain.engine.protocol import StepResult
from pretrain.errors import RankFault


@dataclass
class SkippedSteps:
    """Counts the skipped steps in a row and stops the run at a limit. Every rank sees the same results, so all stop alike."""

    limit: int
    in_a_row: int = 0

    def check(self, step: int, result: StepResult) -> None:
        """Takes note of a step's result (`step` counts from 1). Raises RankFault at the limit."""
        self.in_a_row = self.in_a_row + 1 if result.skipped else 0
        if self.in_a_row >= self.limit:
            raise RankFault(
                f"step {step}: the gradient was not finite in {self.in_a_row} steps in a row "
                f"(optimizer.max_skipped_in_a_row), so the run has diverged; loss {result.loss}. Start it again with a "
                "lower optimizer.peak_lr, a longer schedule.warmup_steps or train.precision=fp32; "
                "it goes on from its last checkpoint"
            )
