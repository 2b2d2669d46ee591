"""A pipeline stage with several floating-point outputs goes backward through its graph once, not once for each of them.

DeepSpeed calls `backward` on one output after another with a retained graph. An encoder-decoder's stage passes on the stream and
the memory, so that everything below both is walked twice: the whole encoder, where the cut lies in the decoder. Gradients are
right either way; one backward for all of them costs half there. Stages with one such output, and the last, are DeepSpeed's.
"""

from typing import Any

import torch
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

    # The base class looks its instructions up in this table: an overridden method alone would have no effect.
    _INSTRUCTION_MAP = {  # noqa: RUF012
        **DeepSpeedPipelineEngine._INSTRUCTION_MAP,
        schedule.BackwardPass: _exec_backward_pass,
    }
