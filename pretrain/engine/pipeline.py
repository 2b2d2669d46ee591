"""The engine of pp > 1: DeepSpeed's pipeline engine with ZeRO-1, under 1F1B or ZB-H1.

The whole schedule of a step runs inside DeepSpeed: forward and backward of all micro-batches, tied gradients, reduction over
the data axis, norm, clipping, the skip of a non-finite step. Costs: sends of 1F1B block, and the host reads the norm every step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.adapters import BalancedPipelineModule, balance, pipeline_layers
from pretrain.engine.base import EngineBase
from pretrain.engine.deferred_backward import DeferredBackwardEngine
from pretrain.engine.expert_balance import BiasBalance
from pretrain.engine.expert_groups import mark_experts, split_groups
from pretrain.engine.initialize import initialize, quiet
from pretrain.engine.joint_backward import JointBackwardEngine
from pretrain.engine.pipeline_trace import PipelineTrace, Recorder, bubble_of
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import StepResult
from pretrain.engine.stage_norm import measure_once
from pretrain.engine.state import training_state
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.weight_gradients import Deferred


class PipelineEngine(EngineBase):
    """See pretrain.engine.protocol.Engine."""

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        super().__init__(plan, mesh)
        self._input_names = plan.boundaries[0]
        module = self._build_stage()
        parameters = list(module.parameters())
        self._balance = BiasBalance(module, mesh)
        mark_experts(module, plan.num_experts, mesh)
        optimizer = split_groups(plan.build_optimizer(parameters))
        self._engine = initialize(model=module, optimizer=optimizer, config=plan.deepspeed)
        measure_once(self._engine.optimizer, mesh)
        self.trace: PipelineTrace | None = None
        """Of the last step that was traced."""
        self._set_schedule()
        self._state = training_state(plan.zero_stage, parameters, self._engine.optimizer, mesh)

    def _set_schedule(self) -> None:
        weight_gradients = self._plan.weight_gradients
        if isinstance(weight_gradients, Deferred):
            self._engine.__class__ = DeferredBackwardEngine
            self._engine.defer(weight_gradients, self.mesh.pipe)
        else:
            self._engine.__class__ = JointBackwardEngine

    def _build_stage(self) -> BalancedPipelineModule:
        plan, layout = self._plan, self.mesh.layout
        # no_grad: the broadcast of tied weights writes to leaves that require gradients.
        with quiet(), torch.no_grad(), self.mesh.device:
            return BalancedPipelineModule(
                pipeline_layers(plan.specs, plan.boundaries),
                balance([spec.cost for spec in plan.specs], layout.pp, [spec.has_parameters for spec in plan.specs]),
                topology=PipeModelDataParallelTopology(num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.data_size),
                loss_fn=lambda end, labels: self._loss(dict(zip(plan.boundaries[-1], end, strict=True)), *labels),
            )

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """See the protocol; a step that is logged is traced."""
        if not self._plan.is_traced(self.step + 1):
            return super().train_step(microbatches)
        with Recorder(self.mesh, self._engine) as recorder:
            result = super().train_step(microbatches)
        self.trace = recorder.trace()
        return replace(result, pipeline_bubble=bubble_of(self.trace, self.mesh))

    def _attempt(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> tuple[float, bool]:
        skipped_before = self._engine.skipped_steps
        self._engine.train_batch(data_iter=self._feed(microbatches, weight))
        return float(self._engine._global_grad_norm), self._engine.skipped_steps > skipped_before

    def _pass_without_gradients(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> None:
        self._engine.eval_batch(self._feed(microbatches, weight), num_micro_batches=len(microbatches))
        self._engine.module.train()

    def _feed(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> Iterator[Any]:
        for batch in microbatches:
            # Labels ride through the stages where the head makes losses of them.
            fields = {**batch.inputs, "labels": batch.labels}
            yield tuple(fields[name] for name in self._input_names), (batch.labels, weight)
