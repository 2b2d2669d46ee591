"""What both engines do around DeepSpeed: weights of micro-batches before, global sums after."""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from pretrain.data.micro_batch import MicroBatch
from pretrain.engine.objective import LossSums
from pretrain.engine.protocol import EvaluationResult, StepResult
from pretrain.parallel.mesh import ProcessMesh


def count_targets(microbatches: Sequence[MicroBatch], mesh: ProcessMesh) -> int:
    """Valid targets of the global batch: one integer all-reduce over the data axis."""
    count = torch.tensor(sum(batch.targets for batch in microbatches), dtype=torch.int64, device=mesh.device)
    if mesh.data.group is not None:
        dist.all_reduce(count, group=mesh.data.group)
    return int(count)


def micro_batch_weight(targets: int, micro_batches: int, mesh: ProcessMesh) -> torch.Tensor:
    """Weight of a micro-batch's summed loss, such that DeepSpeed's averages give the mean over the global targets."""
    return torch.tensor(micro_batches * mesh.data.size / max(targets, 1), dtype=torch.float32, device=mesh.device)


def _share(values: torch.Tensor, mesh: ProcessMesh) -> torch.Tensor:
    """Sums over the data axis on the last stage, then gives the sums to every stage."""
    if mesh.data.group is not None and mesh.is_last_stage:
        dist.all_reduce(values, group=mesh.data.group)
    if mesh.pipe.group is not None:
        dist.broadcast(values, src=mesh.pipe.ranks[-1], group=mesh.pipe.group)
    return values


def step_result(
    sums: LossSums, mesh: ProcessMesh, *, targets: int, grad_norm: float, lr: float, skipped: bool
) -> StepResult:
    """The result of a step, the same on every rank."""
    values = torch.zeros(3, dtype=torch.float64, device=mesh.device)
    if sums.by_position is not None and sums.objective is not None and sums.z_loss is not None:
        values = torch.stack([sums.by_position.sum(), sums.objective, sums.z_loss])
    loss, objective, z_loss = (_share(values, mesh) / max(targets, 1)).tolist()
    return StepResult(loss, objective + z_loss, z_loss, grad_norm, lr, targets, skipped)


def evaluation_result(sums: LossSums, mesh: ProcessMesh, sequence_length: int) -> EvaluationResult:
    """The result of an evaluation, the same on every rank."""
    values = torch.zeros(2, sequence_length, dtype=torch.float64, device=mesh.device)
    if sums.by_position is not None and sums.targets_by_position is not None:
        values = torch.stack([sums.by_position, sums.targets_by_position.double()])
    losses, targets = _share(values, mesh).cpu()
    return EvaluationResult(losses, targets.long())
