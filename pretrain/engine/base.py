"""EngineBase: what both engines do alike around a step, an evaluation and a load.

A subclass builds DeepSpeed's engine and its training state, and says how one attempt of the optimizer and one pass without
gradients run on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.objective import TrainingLoss
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import EvaluationResult, Fragment, StepResult
from pretrain.engine.state import TrainingState
from pretrain.engine.steps import count_targets, evaluation_result, micro_batch_weight, step_result
from pretrain.parallel.mesh import ProcessMesh


class EngineBase(ABC):
    """See pretrain.engine.protocol.Engine."""

    _engine: Any
    """DeepSpeed's."""
    _state: TrainingState

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        self.mesh, self.step, self.skipped_steps = mesh, 0, 0
        self.num_parameters = plan.num_parameters
        self._plan = plan
        self._loss = TrainingLoss(plan.train.loss, mesh.model, plan.vocab_size)

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """See the protocol."""
        targets = count_targets(microbatches, self.mesh)
        weight = micro_batch_weight(targets, len(microbatches), self.mesh)
        lr = self._plan.lr(self.step)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        grad_norm, skipped = self._attempt(microbatches, weight)
        self.step += 1
        self.skipped_steps += int(skipped)
        sums = self._loss.take()
        return step_result(sums, self.mesh, targets=targets, grad_norm=grad_norm, lr=lr, skipped=skipped)

    def evaluate(self, microbatches: Sequence[MicroBatch]) -> EvaluationResult:
        """See the protocol."""
        self._loss.take()
        self._pass_without_gradients(microbatches, torch.ones((), device=self.mesh.device))
        return evaluation_result(self._loss.take(), self.mesh, microbatches[0].labels.shape[1])

    def fragments(self) -> Iterator[Fragment]:
        """See the protocol."""
        return self._state.fragments()

    def finish_load(self, step: int, skipped: int = 0) -> None:
        """See the protocol."""
        self.step, self.skipped_steps = step, skipped
        self._state.finish_load(step - skipped)

    @abstractmethod
    def _attempt(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> tuple[float, bool]:
        """Forward, backward and one attempt of the optimizer: (gradient norm before clipping, skipped)."""

    @abstractmethod
    def _pass_without_gradients(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> None:
        """Takes the micro-batches through model and loss as they are in evaluation; the loss keeps the sums."""
