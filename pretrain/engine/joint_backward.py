"""A pipeline stage with several floating-point outputs goes backward through its graph once, not once for each of them.

DeepSpeed calls `backward` on one output after another with a retained graph. An encoder-decoder's stage passes on the stream and
the memory, so that everything below both is walked twice: the whole encoder, where the cut lies in the decoder. Gradients are
right either way; one backward for all of them costs half there. Stages with one such output, and the last, are DeepSpeed's.

And copies of tied weights get the sum of their gradients wherever the optimizer accumulates them. DeepSpeed sums `weight.grad`,
which is empty where ZeRO-1 accumulates fp32 gradients beside it (fp16, or bf16 with an offloaded optimizer): silently, each stage
then trains on its own part of the gradient (tests/engine/test_deepspeed_faults.py).
"""

from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule
from deepspeed.runtime.pipe.engine import PipelineEngine as DeepSpeedPipelineEngine


class JointBackwardEngine(DeepSpeedPipelineEngine):
    """DeepSpeed's pipeline engine with another backward pass; an initialised engine is given this class."""

    def _exec_backward_pass(self: Any, buffer_id: int) -> None:
        outputs = self.pipe_buffers["outputs"][buffer_id]
        tensors = [t for t in outputs if t.is_floating_point()] if isinstance(outputs, tuple) else []
        if self.is_last_stage() or len(tensors) < 2:
            DeepSpeedPipelineEngine._exec_backward_pass(self, buffer_id)
            return
        if self.using_bf16_optimizer:
            self.optimizer.clear_lp_grads()
        self._running_engine_backward = True
        try:
            torch.autograd.backward(tensors, self.grad_layer)
        finally:
            self._running_engine_backward = False
        if self.using_bf16_optimizer:
            self.optimizer.update_hp_grads(clear_lp_grads=False)
        self.pipe_buffers["output_tensors"][buffer_id] = None
        self.pipe_buffers["outputs"][buffer_id] = None

    def _allocate_or_extend_buffers(self: Any, idx: int, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        # A buffer of its own for all that is received: the base class keeps one for each index and lends it to activations and
        # gradients alike, whatever their types: a gradient at the index of integers would be read as such, silently.
        return self._allocate_buffer(shape, dtype=dtype, num_buffers=1)[0]

    def _exec_reduce_tied_grads(self: Any) -> None:
        for weight, group in self.module.get_tied_weights_and_groups():
            gradient = (
                weight._hp_grad if self.using_bf16_optimizer else self.optimizer.get_param_gradient_attribute(weight)
            )
            if gradient is not None:
                dist.all_reduce(gradient, group=group)

    # The base class looks its instructions up in this table: an overridden method alone would have no effect.
    _INSTRUCTION_MAP = {  # noqa: RUF012
        **DeepSpeedPipelineEngine._INSTRUCTION_MAP,
        schedule.BackwardPass: _exec_backward_pass,
        schedule.ReduceTiedGrads: _exec_reduce_tied_grads,
    }
