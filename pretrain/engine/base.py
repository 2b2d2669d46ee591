"""EngineBase: what both engines do alike around a step, an evaluation and a load.

A subclass builds DeepSpeed's engine and its training state, and says how one attempt of the optimizer and one pass without
gradients run on it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.expert_balance import BiasBalance
from pretrain.engine.loss_scale import LossScale, loss_scale_of, set_loss_scale
from pretrain.engine.objective import TrainingLoss
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import EvaluationResult, Fragment, StepResult
from pretrain.engine.state import TrainingState
from pretrain.engine.steps import (
    GlobalBatch,
    context_part,
    count_targets,
    evaluation_result,
    micro_batch_weight,
    source_numbers,
    step_result,
)
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.sequence import SequenceSplit


class EngineBase(ABC):
    """See pretrain.engine.protocol.Engine."""

    _engine: Any
    """DeepSpeed's."""
    _state: TrainingState
    _balance: BiasBalance

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        self.mesh, self.step, self.skipped_steps = mesh, 0, 0
        self.num_parameters = plan.num_parameters
        self._plan = plan
        self._sequence = SequenceSplit(mesh.ring, mesh.ulysses)
        self._loss = TrainingLoss(plan.train.loss, mesh.model, plan.vocab_size, mesh.layout.context_size)

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """See the protocol."""
        microbatches = [context_part(batch, self._sequence) for batch in microbatches]
        row_sources = source_numbers(microbatches)
        targets = count_targets(microbatches, self.mesh, row_sources)
        weight = micro_batch_weight(sum(targets), len(microbatches), self.mesh)
        lr = self._plan.lr(self.step)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        grad_norm, skipped = self._attempt(microbatches, weight)
        self.step += 1
        self.skipped_steps += int(skipped)
        sequences = sum(len(batch.labels) for batch in microbatches) * self.mesh.layout.dp
        batch = GlobalBatch(targets, sequences, row_sources, self._plan.expert_layers, self._plan.num_experts)
        result = step_result(self._loss.take(), self.mesh, batch, grad_norm=grad_norm, lr=lr, skipped=skipped)
        if result.expert_load is not None and not skipped:
            self._balance.move(result.expert_load)
        return result

    def evaluate(self, microbatches: Sequence[MicroBatch]) -> EvaluationResult:
        """See the protocol."""
        length = microbatches[0].labels.shape[1]
        parts = [context_part(batch, self._sequence) for batch in microbatches]
        self._loss.take()
        self._pass_without_gradients(parts, torch.ones((), device=self.mesh.device))
        return evaluation_result(self._loss.take(), self.mesh, self._sequence.positions(length), length)

    def fragments(self) -> Iterator[Fragment]:
        """See the protocol."""
        yield from self._state.fragments()
        yield from self._balance.fragments()

    def finish_load(self, step: int, skipped: int = 0) -> None:
        """See the protocol."""
        self.step, self.skipped_steps = step, skipped
        self._state.finish_load(step - skipped)

    @property
    def loss_scale(self) -> LossScale | None:
        """State that a checkpoint of fp16 training has to hold beside the fragments; None in other precisions."""
        return loss_scale_of(self._engine.optimizer)

    def set_loss_scale(self, state: LossScale) -> None:
        """Puts a saved one back; every rank calls it with the same."""
        set_loss_scale(self._engine.optimizer, state)

    @abstractmethod
    def _attempt(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> tuple[float, bool]:
        """Forward, backward and one attempt of the optimizer: (gradient norm before clipping, skipped)."""

    @abstractmethod
    def _pass_without_gradients(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> None:
        """Takes the micro-batches through model and loss as they are in evaluation; the loss keeps the sums."""
