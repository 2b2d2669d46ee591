"""The plain torch training loop: what the engine is measured against. It imports nothing of the engine or of DeepSpeed.

Its precision is the engine's, by hand. fp32: everything in fp32. bf16: weights and activations in bf16; each micro-batch's
gradient is added to an fp32 buffer; norm, clipping and AdamW work on fp32 masters, which are then rounded into the weights.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.optim.settings import OptimizerSettings

Forward = Callable[[MicroBatch], torch.Tensor]
"""A micro-batch to logits (B, S, V)."""


class PlainLoop:
    """A model, its fp32 masters and a fused AdamW."""

    def __init__(
        self, model: nn.Module, forward: Forward, optimizer: OptimizerSettings, precision: Literal["fp32", "bf16"]
    ) -> None:
        self.forward = forward
        self.clip_norm = optimizer.clip_norm
        self.low_precision = precision == "bf16"
        self.weights = list(model.parameters())
        self.masters = self.weights
        if self.low_precision:
            self.masters = [nn.Parameter(weight.detach().clone()) for weight in self.weights]
            model.bfloat16()
        matrices = [master for master in self.masters if master.ndim >= 2]
        vectors = [master for master in self.masters if master.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": optimizer.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=optimizer.peak_lr,
            betas=optimizer.betas,
            eps=optimizer.epsilon,
            fused=True,
        )

    def step(self, microbatches: Sequence[MicroBatch]) -> float:
        """One optimizer step; returns the cross-entropy per target."""
        targets = sum(batch.targets for batch in microbatches)
        loss = torch.zeros((), device=self.weights[0].device)
        for batch in microbatches:
            logits = self.forward(batch)
            summed = F.cross_entropy(
                logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum"
            )
            part = summed / targets
            part.backward()
            loss += part.detach()
            if self.low_precision:
                self._accumulate()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.masters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.low_precision:
            with torch.no_grad():
                for weight, master in zip(self.weights, self.masters, strict=True):
                    weight.copy_(master)
        return float(loss)

    def _accumulate(self) -> None:
        """Adds the bf16 gradients to the masters' fp32 ones."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            assert weight.grad is not None
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None
