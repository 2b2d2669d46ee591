"""TrainingLoss: from vocabulary-parallel logits to what is minimised, with its sums kept for the log.

The loss of a step is a sum over tokens divided by the valid targets of the global batch. DeepSpeed averages over micro-batches
and over the data axis, whatever the counts of targets: so each micro-batch's sum is weighted with
`micro-batches x data ranks / targets`, and the two averages turn it into the sum over targets. What experts add is a mean over
sequences; the ranks that share sequences hold addends of it, so their number takes the place of that weight.
"""

import torch

from pretrain.data.micro_batch import IGNORED
from pretrain.engine.settings import LossSettings
from pretrain.model.carry import Carry
from pretrain.parallel.cross_entropy import TokenLosses, vocabulary_parallel_cross_entropy
from pretrain.parallel.mesh import Axis


class LossSums:
    """Running sums of one step or one evaluation on a rank of the last stage."""

    def __init__(self) -> None:
        self.by_position: torch.Tensor | None = None
        self.by_row: list[torch.Tensor] = []
        """Of each micro-batch, (B,) float64."""
        self.targets_by_position: torch.Tensor | None = None
        self.objective: torch.Tensor | None = None
        self.z_loss: torch.Tensor | None = None
        self.auxiliary: torch.Tensor | None = None
        self.loads: torch.Tensor | None = None
        """(M, E + 1), see the carry."""

    @torch.no_grad()
    def add(
        self, cross_entropy: torch.Tensor, valid: torch.Tensor, objective: torch.Tensor, z_loss: torch.Tensor
    ) -> None:
        """Adds a micro-batch: cross_entropy, valid (B, S); objective and z_loss are sums over its tokens."""
        exact = cross_entropy.double()
        by_position, targets = exact.sum(0), valid.long().sum(0)
        self.by_row.append(exact.sum(1))
        if self.by_position is None or self.targets_by_position is None:
            self.by_position, self.targets_by_position = by_position, targets
            self.objective, self.z_loss = objective.detach().double(), z_loss.detach().double()
        else:
            assert self.objective is not None and self.z_loss is not None
            self.by_position += by_position
            self.targets_by_position += targets
            self.objective += objective.detach()
            self.z_loss += z_loss.detach()

    @torch.no_grad()
    def add_experts(self, end: Carry) -> None:
        """Adds what the experts of a micro-batch left of the carry, if there are any."""
        if "loads" in end:
            self.loads = end["loads"].clone() if self.loads is None else self.loads + end["loads"]
        if "auxiliary" in end:
            auxiliary = end["auxiliary"].detach().double().sum()
            self.auxiliary = auxiliary if self.auxiliary is None else self.auxiliary + auxiliary


class TrainingLoss(torch.nn.Module):
    """Cross-entropy with label smoothing, plus z-loss (PaLM, section 5: z_loss x log(Z)^2 a token)."""

    def __init__(self, settings: LossSettings, axis: Axis, vocab_size: int, context_size: int = 1) -> None:
        super().__init__()
        self.context_size = context_size
        self.settings = settings
        self.axis = axis
        self.vocab_size = vocab_size
        self.sums = LossSums()

    def forward(self, end: Carry, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Weighted objective of a micro-batch, a scalar: what the model left of the carry, labels (B, C), weight ()."""
        losses = TokenLosses(*end["losses"].unbind()) if "losses" in end else self._of_logits(end["logits"], labels)
        valid = labels != IGNORED
        objective = losses.objective.sum()
        z_loss = objective.new_zeros(())
        if self.settings.z_loss > 0:
            z_loss = self.settings.z_loss * losses.log_z.square().masked_fill(~valid, 0.0).sum()
        self.sums.add(losses.cross_entropy, valid, objective, z_loss)
        self.sums.add_experts(end)
        weighted = (objective + z_loss) * weight
        return weighted + end["auxiliary"].mean() * self.context_size if "auxiliary" in end else weighted

    def _of_logits(self, logits: torch.Tensor, labels: torch.Tensor) -> TokenLosses:
        """Of logits (B, C, V/tp)."""
        return vocabulary_parallel_cross_entropy(
            logits, labels, self.axis, self.vocab_size, label_smoothing=self.settings.label_smoothing
        )

    def take(self) -> LossSums:
        """The sums since the last call."""
        sums, self.sums = self.sums, LossSums()
        return sums
