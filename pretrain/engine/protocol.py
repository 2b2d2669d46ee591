"""What the training loop asks of an engine. Both engines pass one contract-test suite (tests/engine)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.loss_scale import LossScale
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import Shard

StateKind = Literal["weight", "exp_avg", "exp_avg_sq", "buffer"]
"""fp32 master weight, Adam's first and second moment; a buffer is state that no gradient moves, such as a router's bias."""


@dataclass(frozen=True)
class ExpertLoad:
    """How a step's tokens were spread over the experts of each layer, over the global batch."""

    layers: tuple[str, ...]
    """Names of the layers with experts."""
    chosen: tuple[tuple[int, ...], ...]
    """For each layer, how many tokens chose each expert."""
    dropped: tuple[int, ...]
    """For each layer, how many of these choices a capacity dropped."""


@dataclass(frozen=True)
class StepResult:
    """One attempt of the optimizer. Values are global (over the whole batch and all ranks), the same on every rank."""

    loss: float
    """Cross-entropy per valid target of the global batch, in nats."""
    objective: float
    """What was minimised: cross-entropy with label smoothing, plus z-loss and what experts add."""
    z_loss: float
    """The z-loss term, coefficient included."""
    grad_norm: float
    """Global 2-norm of the gradient before clipping; inf or nan where the step was skipped."""
    lr: float
    """Learning rate that the step used."""
    targets: int
    """Valid targets of the global batch."""
    skipped: bool
    """Whether the parameters were left as they were because a gradient was not finite."""
    pipeline_bubble: float | None = field(default=None, compare=False)
    """Share of the step's pipeline time in which stages do no pass (pretrain.engine.pipeline_trace); of a traced step. A time,
    which makes no two steps different."""
    auxiliary: float = 0.0
    """What experts add to the objective, coefficients included: a sum over layers, a mean over the global batch's sequences."""
    expert_load: ExpertLoad | None = None
    """None for a dense model."""
    loss_by_source: tuple[float | None, ...] = ()
    """`loss` over the targets of each source; None where the batch has none of it. Empty where rows are not told apart."""


@dataclass(frozen=True)
class EvaluationResult:
    """Sums over an evaluation set, global, the same on every rank; divide for means."""

    loss_by_position: torch.Tensor
    """(S,) float64: summed cross-entropy at each position."""
    targets_by_position: torch.Tensor
    """(S,) int64: valid targets at each position."""

    @staticmethod
    def sum(parts: "Sequence[EvaluationResult]") -> "EvaluationResult":
        """Of one set that was evaluated in parts."""
        first, *others = parts
        losses, targets = first.loss_by_position, first.targets_by_position
        for part in others:
            losses, targets = losses + part.loss_by_position, targets + part.targets_by_position
        return EvaluationResult(losses, targets)

    @property
    def loss(self) -> float:
        """Cross-entropy per valid target, in nats."""
        return float(self.loss_by_position.sum() / self.targets_by_position.sum())


@dataclass(frozen=True)
class Fragment:
    """A contiguous piece of one parameter's training state that this rank owns."""

    kind: StateKind
    shard: Shard
    """Global name and shape, and the part that the model-axis coordinate of this rank holds."""
    local_shape: tuple[int, ...]
    """Shape of that part as it lies in memory (a padded vocabulary included)."""
    start: int
    """Offset of the piece in the flattened local part, in elements."""
    tensor: torch.Tensor
    """(n,) float32, a live view: reading saves, writing loads."""
    writes: bool
    """Whether this rank is the one that saves it (replicas and tied copies are saved once)."""


class Engine(Protocol):
    """A model, its optimizer and its layout, ready to train."""

    mesh: ProcessMesh
    step: int
    """Attempts of the optimizer so far."""
    skipped_steps: int
    """Those of them that left the parameters as they were."""
    num_parameters: int
    """Global parameters, tied ones once."""

    @property
    def loss_scale(self) -> LossScale | None:
        """Where the dynamic loss scale stands; None where nothing is scaled."""
        ...

    def set_loss_scale(self, state: LossScale) -> None:
        """Puts a saved loss scale back; of an engine that has one."""
        ...

    def train_step(self, microbatches: Sequence[MicroBatch]) -> StepResult:
        """One step on this rank's micro-batches; every rank calls it with the same number of them."""
        ...

    def evaluate(self, microbatches: Sequence[MicroBatch]) -> EvaluationResult:
        """Losses without dropout, leaving the model as it was; every rank calls it with the same number of micro-batches."""
        ...

    def fragments(self) -> Iterator[Fragment]:
        """All state that this rank holds, in a fixed order. Moments exist from the first call on (zeros before a step)."""
        ...

    def finish_load(self, step: int, skipped: int = 0) -> None:
        """After the fragments were filled: refreshes what derives from them and sets the counts of attempts and skips."""
        ...
