"""The engine of pp > 1: DeepSpeed's pipeline engine, 1F1B, ZeRO-1.

The whole schedule of a step runs inside DeepSpeed: forward and backward of all micro-batches, tied gradients, reduction over
the data axis, norm, clipping, the skip of a non-finite step. Costs: sends block, and the norm is read by the host every step.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.adapters import BalancedPipelineModule, balance, pipeline_layers
from pretrain.engine.base import EngineBase
from pretrain.engine.initialize import initialize, quiet
from pretrain.engine.joint_backward import JointBackwardEngine
from pretrain.engine.plan import EnginePlan
from pretrain.engine.state import training_state
from pretrain.parallel.mesh import ProcessMesh


class PipelineEngine(EngineBase):
    """See pretrain.engine.protocol.Engine."""

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        super().__init__(plan, mesh)
        self._input_names = plan.boundaries[0]
        module = self._build_stage()
        parameters = list(module.parameters())
        self._engine = initialize(model=module, optimizer=plan.build_optimizer(parameters), config=plan.deepspeed)
        self._engine.__class__ = JointBackwardEngine
        self._state = training_state(plan.zero_stage, parameters, self._engine.optimizer, mesh)

    def _build_stage(self) -> BalancedPipelineModule:
        plan, layout = self._plan, self.mesh.layout
        # no_grad: the broadcast of tied weights writes to leaves that require gradients.
        with quiet(), torch.no_grad(), self.mesh.device:
            return BalancedPipelineModule(
                pipeline_layers(plan.specs, plan.boundaries),
                balance([spec.cost for spec in plan.specs], layout.pp),
                topology=PipeModelDataParallelTopology(num_pp=layout.pp, num_mp=layout.tp, num_dp=layout.dp),
                loss_fn=lambda end, labels: self._loss(dict(zip(plan.boundaries[-1], end, strict=True)), *labels),
            )

    def _attempt(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> tuple[float, bool]:
        skipped_before = self._engine.skipped_steps
        self._engine.train_batch(data_iter=self._feed(microbatches, weight))
        return float(self._engine._global_grad_norm), self._engine.skipped_steps > skipped_before

    def _pass_without_gradients(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> None:
        self._engine.eval_batch(self._feed(microbatches, weight), num_micro_batches=len(microbatches))
        self._engine.module.train()

    def _feed(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> Iterator[Any]:
        for batch in microbatches:
            yield tuple(batch.inputs[name] for name in self._input_names), (batch.labels, weight)
