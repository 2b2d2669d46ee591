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
from pretrain.engine.initialize import initialize, quiet
from pretrain.engine.objective import TrainingLoss
from pretrain.engine.plan import EnginePlan
from pretrain.engine.protocol import EvaluationResult, Fragment, StepResult
from pretrain.engine.state import training_state
from pretrain.engine.steps import count_targets, evaluation_result, micro_batch_weight, step_result
from pretrain.parallel.mesh import ProcessMesh


class PipelineEngine:
    """See pretrain.engine.protocol.Engine."""

    def __init__(self, plan: EnginePlan, mesh: ProcessMesh) -> None:
        self.mesh, self.step, self.skipped_steps = mesh, 0, 0
        self.num_parameters = plan.num_parameters
        self._plan = plan
        self._input_names = plan.boundaries[0]
        self._loss = TrainingLoss(plan.train.loss, mesh.model, plan.vocab_size)
        topology = PipeModelDataParallelTopology(num_pp=mesh.layout.pp, num_mp=mesh.layout.tp, num_dp=mesh.layout.dp)
        bounds = balance([spec.cost for spec in plan.specs], mesh.layout.pp)
        # no_grad: the broadcast of tied weights writes to leaves that require gradients.
        with quiet(), torch.no_grad(), mesh.device:
            module = BalancedPipelineModule(
                pipeline_layers(plan.specs, plan.boundaries),
                bounds,
                topology=topology,
                loss_fn=lambda logits, labels: self._loss(logits, *labels),
            )
        parameters = list(module.parameters())
        self._engine: Any = initialize(model=module, optimizer=plan.build_optimizer(parameters), config=plan.deepspeed)
        self._state = training_state(plan.zero_stage, parameters, self._engine.optimizer, mesh)

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """See the protocol."""
        targets = count_targets(microbatches, self.mesh)
        weight = micro_batch_weight(targets, len(microbatches), self.mesh)
        lr = self._plan.lr(self.step)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        skipped_before = self._engine.skipped_steps
        self._engine.train_batch(data_iter=self._feed(microbatches, weight))
        self.step += 1
        skipped = self._engine.skipped_steps > skipped_before
        self.skipped_steps += int(skipped)
        return step_result(
            self._loss.take(),
            self.mesh,
            targets=targets,
            grad_norm=float(self._engine._global_grad_norm),
            lr=lr,
            skipped=skipped,
        )

    def evaluate(self, microbatches: Sequence[MicroBatch]) -> EvaluationResult:
        """See the protocol."""
        weight = torch.ones((), device=self.mesh.device)
        self._loss.take()
        self._engine.eval_batch(self._feed(microbatches, weight), num_micro_batches=len(microbatches))
        self._engine.module.train()
        return evaluation_result(self._loss.take(), self.mesh, microbatches[0].labels.shape[1])

    def fragments(self) -> Iterator[Fragment]:
        """See the protocol."""
        return self._state.fragments()

    def finish_load(self, step: int, skipped: int = 0) -> None:
        """See the protocol."""
        self.step, self.skipped_steps = step, skipped
        self._state.finish_load(step - skipped)

    def _feed(self, microbatches: Sequence[MicroBatch], weight: torch.Tensor) -> Iterator[Any]:
        for batch in microbatches:
            yield tuple(batch.inputs[name] for name in self._input_names), (batch.labels, weight)
