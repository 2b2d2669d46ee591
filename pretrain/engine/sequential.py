"""The engine of pp = 1: the whole layer list on each rank, with ZeRO 0 to 3.

At ZeRO-0 norm, guard and clipping are ours (pretrain.engine.gradients): DeepSpeed reports no norm there.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.adapters import ModelParallelUnit
from pretrain.engine.gradients import guard_and_clip
from pretrain.engine.initialize import initialize
from pretrain.engine.objective import TrainingLoss
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import EvaluationResult, Fragment, StepResult
from pretrain.engine.state import training_state
from pretrain.engine.steps import count_targets, evaluation_result, micro_batch_weight, step_result
from pretrain.model.layers import LayerStack
from pretrain.parallel.mesh import ProcessMesh


class _ModelWithLoss(nn.Module):
    """The layer list and the loss in one forward: DeepSpeed hooks what its module returns."""

    def __init__(self, stack: LayerStack, loss: TrainingLoss) -> None:
        super().__init__()
        self.stack, self.loss = stack, loss

    def forward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Weighted objective of a micro-batch, a scalar."""
        return self.loss(self.stack(inputs), labels, weight)


class SequentialEngine:
    """See pretrain.engine.protocol.Engine."""

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        self.mesh, self.step, self.skipped_steps = mesh, 0, 0
        self.num_parameters = plan.num_parameters
        self._plan = plan
        self._loss = TrainingLoss(plan.train.loss, mesh.model, plan.vocab_size)
        with mesh.device:
            module = _ModelWithLoss(LayerStack(plan.specs), self._loss)
        self._parameters = list(module.parameters())
        self._engine: Any = initialize(
            model=module,
            optimizer=plan.build_optimizer(self._parameters),
            config=plan.deepspeed,
            mpu=ModelParallelUnit(mesh),
        )
        self._state = training_state(plan.zero_stage, self._parameters, self._engine.optimizer, mesh)

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """See the protocol."""
        targets = count_targets(microbatches, self.mesh)
        weight = micro_batch_weight(targets, len(microbatches), self.mesh)
        lr = self._plan.lr(self.step)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        for batch in microbatches[:-1]:
            self._engine.backward(self._forward(batch, weight))
            self._engine.step()
        self._engine.backward(self._forward(microbatches[-1], weight))
        grad_norm, skipped = self._update()
        self.step += 1
        self.skipped_steps += int(skipped)
        return step_result(self._loss.take(), self.mesh, targets=targets, grad_norm=grad_norm, lr=lr, skipped=skipped)

    def evaluate(self, microbatches: Sequence[MicroBatch]) -> EvaluationResult:
        """See the protocol."""
        weight = torch.ones((), device=self.mesh.device)
        self._loss.take()
        self._engine.eval()
        with torch.no_grad():
            for batch in microbatches:
                self._forward(batch, weight)
        self._engine.train()
        return evaluation_result(self._loss.take(), self.mesh, microbatches[0].labels.shape[1])

    def fragments(self) -> Iterator[Fragment]:
        """See the protocol."""
        return self._state.fragments()

    def finish_load(self, step: int, skipped: int = 0) -> None:
        """See the protocol."""
        self.step, self.skipped_steps = step, skipped
        self._state.finish_load(step - skipped)

    def _forward(self, batch: MicroBatch, weight: torch.Tensor) -> torch.Tensor:
        device = self.mesh.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
        return self._engine(inputs, batch.labels.to(device, non_blocking=True), weight)

    def _update(self) -> tuple[float, bool]:
        """The optimizer's attempt after the last backward: (gradient norm before clipping, skipped)."""
        if self._plan.zero_stage > 0:
            skipped_before = self._engine.skipped_steps
            self._engine.step()
            return float(self._engine._global_grad_norm), self._engine.skipped_steps > skipped_before
        norm, finite = guard_and_clip(self._parameters, self.mesh, self._plan.clip_norm)
        if not finite:
            # The engine must count its micro-step, so it takes the step with nothing to apply.
            for parameter in self._parameters:
                parameter.grad = None
        self._engine.step()
        return norm, not finite
