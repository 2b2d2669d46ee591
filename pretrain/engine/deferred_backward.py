"""DeepSpeed's pipeline engine under ZB-H1: weight gradients in passes of their own, sends that do not block.

An initialised engine is given the class `DeferredBackwardEngine` and told its schedule by `defer`. What differs from 1F1B:

- a `WeightPass` runs the oldest products that wait (parallel/weight_gradients.py); gradients are reduced after the last;
- sends return at once, for the receiver may still be about a weight pass: a blocking one would hold the stage up. What is sent
  is kept until it is surely received;
- gradients travel in the pipeline axis's own group, activations in the world's. The two ends of a link post theirs in different
  orders, which NCCL does not forgive within one communicator;
- a received gradient gets memory of its own: DeepSpeed receives into one buffer, which the products that wait would alias.
"""

from collections import deque
from collections.abc import Generator
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule
from torch import nn

from pretrain.engine.joint_backward import JointBackwardEngine
from pretrain.engine.schedules import Work, zb_h1
from pretrain.parallel.mesh import Axis
from pretrain.parallel.weight_gradients import Deferred

Sent = list[tuple[Any, torch.Tensor]]


class WeightPass(schedule.PipeInstruction):
    """Weight gradients of the oldest micro-batch that waits for them."""


class ZeroBubbleSchedule(schedule.TrainSchedule):
    """ZB-H1 in DeepSpeed's instructions."""

    def steps(self) -> Generator[list[schedule.PipeInstruction], Any, None]:
        """One list a pass: what is received for it, the pass, what is sent of it. Then what follows the last."""
        for work in zb_h1(self.stages, self.stage_id, self.micro_batches):
            yield self._instructions(work)
        yield [schedule.ReduceTiedGrads(), schedule.ReduceGrads(), schedule.OptimizerStep()]

    def _instructions(self, work: Work) -> list[schedule.PipeInstruction]:
        if work.kind == "weight":
            return [WeightPass()]
        buffer = self._buffer_idx(work.micro_batch)
        commands: list[schedule.PipeInstruction] = []
        if work.kind == "forward":
            if self.is_first_stage or self.is_last_stage:
                commands.append(schedule.LoadMicroBatch(buffer))
            if not self.is_first_stage:
                commands.append(schedule.RecvActivation(buffer))
            commands.append(schedule.ForwardPass(buffer))
            return commands if self.is_last_stage else [*commands, schedule.SendActivation(buffer)]
        if not self.is_last_stage:
            commands.append(schedule.RecvGrad(buffer))
        commands.append(schedule.BackwardPass(buffer))
        return commands if self.is_first_stage else [*commands, schedule.SendGrad(buffer)]


class DeferredBackwardEngine(JointBackwardEngine):
    """DeepSpeed's pipeline engine whose weight gradients wait."""

    def defer(self: Any, weight_gradients: Deferred, pipe: Axis) -> None:
        """What an engine of this class must know before its first step."""
        self.weight_gradients, self.pipe = weight_gradients, pipe
        self.sent_activations, self.sent_gradients = deque[Sent](), deque[Sent]()
        self.place_in_optimizer = {}
        if self.using_bf16_optimizer:
            self.place_in_optimizer = {
                id(parameter): (group, index)
                for group, parameters in enumerate(self.optimizer.bf16_groups)
                for index, parameter in enumerate(parameters)
            }

    def _train_schedule(self: Any) -> ZeroBubbleSchedule:
        return ZeroBubbleSchedule(self.micro_batches, self.num_stages, self.stage_id)

    def _exec_schedule(self: Any, pipe_schedule: Any) -> None:
        JointBackwardEngine._exec_schedule(self, pipe_schedule)
        for sent in (*self.sent_activations, *self.sent_gradients):
            _wait(sent)
        self.sent_activations.clear()
        self.sent_gradients.clear()

    def _exec_backward_pass(self: Any, buffer_id: int) -> None:
        self.weight_gradients.start_backward()
        JointBackwardEngine._exec_backward_pass(self, buffer_id)

    def _exec_weight_pass(self: Any) -> None:
        # DeepSpeed's hooks take a backward pass outside of its own for a mistake of the user.
        self._running_engine_backward = True
        try:
            weights = self.weight_gradients.run_oldest()
        finally:
            self._running_engine_backward = False
        if self.using_bf16_optimizer:
            self._accumulate(weights)

    def _accumulate(self: Any, weights: list[nn.Parameter]) -> None:
        """Adds gradients to the optimizer's fp32 ones, which it does itself for a whole backward pass only.

        They are dropped then: the next pass would add them once more.
        """
        for weight in weights:
            self.optimizer._update_hp_grad(weight, *self.place_in_optimizer[id(weight)], clear_lp_grads=False)
            weight.grad = None

    def _exec_send_activations(self: Any, buffer_id: int) -> None:
        outputs = self.pipe_buffers["outputs"][buffer_id]
        if self.first_output_send:
            self.first_output_send = False
            self._send_tensor_meta(outputs, self.next_stage)
        self._send(self.sent_activations, outputs, self.next_stage, None)

    def _exec_send_grads(self: Any, buffer_id: int) -> None:
        inputs = self.pipe_buffers["inputs"][buffer_id]
        gradients = [tensor.grad for tensor in inputs if tensor.is_floating_point()]
        assert all(gradient is not None for gradient in gradients), "the law of the carry is broken"
        self._send(self.sent_gradients, gradients, self.prev_stage, self.pipe.group)
        self.pipe_buffers["inputs"][buffer_id] = None

    def _send(self: Any, pending: deque[Sent], tensors: Any, stage: int, group: Any) -> None:
        rank = self.grid.stage_to_global(stage_id=stage)
        kept = [tensor.detach().contiguous() for tensor in tensors]
        pending.append([(dist.isend(tensor, rank, group=group), tensor) for tensor in kept])
        # By then the other end has received the oldest: it is at most as many micro-batches behind as there are stages.
        while len(pending) > self.num_stages:
            _wait(pending.popleft())

    def _exec_recv_grads(self: Any, buffer_id: int) -> None:
        outputs = [tensor for tensor in self.pipe_buffers["outputs"][buffer_id] if tensor.is_floating_point()]
        self.grad_layer = [torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in outputs]
        for gradient in self.grad_layer:
            dist.recv(gradient, self.grid.stage_to_global(stage_id=self.next_stage), group=self.pipe.group)

    # The base class looks its instructions up in this table: an overridden method alone would have no effect.
    _INSTRUCTION_MAP = {  # noqa: RUF012
        **JointBackwardEngine._INSTRUCTION_MAP,
        schedule.BackwardPass: _exec_backward_pass,
        WeightPass: _exec_weight_pass,
        schedule.SendActivation: _exec_send_activations,
        schedule.SendGrad: _exec_send_grads,
        schedule.RecvGrad: _exec_recv_grads,
    }


def _wait(sent: Sent) -> None:
    for work, _ in sent:
        work.wait()
