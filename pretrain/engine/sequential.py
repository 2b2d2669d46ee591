"""The engine of pp = 1: the whole layer list on each rank, with ZeRO 0 to 3.

At ZeRO-0 norm, guard and clipping are ours (pretrain.engine.gradients): DeepSpeed reports no norm there.
"""

from collections.abc import Sequence

import torch
from torch import nn

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.adapters import ModelParallelUnit
from pretrain.engine.base import EngineBase
from pretrain.engine.expert_balance import BiasBalance
from pretrain.engine.expert_groups import mark_experts, split_groups
from pretrain.engine.gradients import guard_and_clip
from pretrain.engine.initialize import initialize
from pretrain.engine.objective import TrainingLoss
from pretrain.engine.plan import EnginePlan
from pretrain.engine.stage_norm import measure_once
from pretrain.engine.state import training_state
from pretrain.model.layers import LayerStack
from pretrain.parallel.mesh import ProcessMesh


class _ModelWithLoss(nn.Module):
    """The layer list and the loss in one forward: DeepSpeed hooks what its module returns."""

    def __init__(self, stack: LayerStack, loss: TrainingLoss) -> None:
        super().__init__()
        self.stack, self.loss = stack, loss

    def forward(self, inputs: dict[str, torch.Tensor], labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Weighted objective of a micro-batch, a scalar."""
        return self.loss(self.stack.end(inputs), labels, weight)


class SequentialEngine(EngineBase):
    """See pretrain.engine.protocol.Engine."""

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        super().__init__(plan, mesh)
        with mesh.device:
            module = _ModelWithLoss(LayerStack(plan.specs), self._loss)
        self._parameters = list(module.parameters())
        self._balance = BiasBalance(module, mesh)
        mark_experts(module, plan.num_experts, mesh)
        self._engine = initialize(
            model=module,
            optimizer=split_groups(plan.build_optimizer(self._parameters)),
            config=plan.deepspeed,
            mpu=ModelParallelUnit(mesh),
        )
        if plan.zero_stage in (1, 2):
            measure_once(self._engine.optimizer, mesh)
        self._state = training_state(plan.zero_stage, self._parameters, self._engine.optimizer, mesh)

    def _attempt(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> tuple[float, bool]:
        for batch in microbatches[:-1]:
            self._engine.backward(self._forward(batch, weight))
            self._engine.step()
        self._engine.backward(self._forward(microbatches[-1], weight))
        if self._plan.zero_stage == 0:
            return self._guarded_step()
        skipped_before = self._engine.skipped_steps
        self._engine.step()
        return float(self._engine._global_grad_norm), self._engine.skipped_steps > skipped_before

    def _guarded_step(self) -> tuple[float, bool]:
        norm, finite = guard_and_clip(self._parameters, self.mesh, self._plan.clip_norm)
        if not finite:
            # DeepSpeed must count its micro-step, so it takes the step with nothing to apply.
            for parameter in self._parameters:
                parameter.grad = None
        self._engine.step()
        return norm, not finite

    def _pass_without_gradients(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> None:
        self._engine.eval()
        with torch.no_grad():
            for batch in microbatches:
                self._forward(batch, weight)
        self._engine.train()

    def _forward(self, batch: MicroBatch, weight: torch.Tensor) -> torch.Tensor:
        device = self.mesh.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.inputs.items()}
        labels = batch.labels.to(device, non_blocking=True)
        return self._engine({**inputs, "labels": labels}, labels, weight)
