"""Seeded faults of zero-bubble schedules, for mutations.py."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from pretrain.parallel.weight_gradients import Deferred


def last_weight_pass_forgotten() -> AbstractContextManager[Any]:
    """The weights of the last micro-batch get no gradient."""
    run_oldest = Deferred.run_oldest

    def forgetful(self: Deferred) -> Any:
        if self.waiting > 1:
            return run_oldest(self)
        self._waiting.clear()
        return []

    return patch.object(Deferred, "run_oldest", forgetful)


@contextlib.contextmanager
def gradients_are_received_into_one_buffer() -> Iterator[None]:
    """The products that wait alias it, and see the gradient of a later micro-batch."""
    from deepspeed.runtime.pipe import schedule

    from pretrain.engine.deferred_backward import DeferredBackwardEngine

    def receive(self: Any, buffer_id: int) -> None:
        if self.grad_layer is None:
            outputs = [t for t in self.pipe_buffers["outputs"][buffer_id] if t.is_floating_point()]
            self.grad_layer = [torch.empty(t.shape, dtype=t.dtype) for t in outputs]
        for gradient in self.grad_layer:
            dist.recv(gradient, self.grid.stage_to_global(stage_id=self.next_stage), group=self.pipe.group)

    with patch.dict(DeferredBackwardEngine._INSTRUCTION_MAP, {schedule.RecvGrad: receive}):
        yield
