"""Expert parallelism as DeepSpeed takes it: marks, process groups and parameter groups of experts that are spread over ranks.

DeepSpeed reduces and partitions a parameter over all data ranks unless it is an expert's: then over those that hold the same
experts, still divided by the whole data axis. It learns this from four places, which are filled here with our groups: a module
of its MoE class, the tables of `deepspeed.utils.groups`, marks of the parameters, and parameter groups of the optimizer that
hold experts alone. Nothing of its MoE layer runs: it is wrong under tensor parallelism.

Experts that are not spread (ep=1) are ordinary parameters, under every ZeRO stage.
"""

from typing import Any

import torch
from deepspeed.moe.layer import MoE
from deepspeed.utils import groups
from torch import nn

from pretrain.engine.adapters import real_group
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import shard_of


class _ExpertMark(MoE):
    """Tells DeepSpeed that there are experts; it computes nothing."""

    def __init__(self, num_experts: int, mesh: ProcessMesh) -> None:
        nn.Module.__init__(self)
        self.num_experts, self.ep_size = num_experts, mesh.expert.size
        self.num_local_experts = num_experts // self.ep_size
        self.expert_group_name = _group_name(mesh)
        self._groups = (real_group(mesh.expert), real_group(mesh.expert_data))

    def set_deepspeed_parallelism(self, use_data_before_expert_parallel_: bool = False) -> None:
        """Puts our groups where DeepSpeed looks; those of an engine before this one are taken out."""
        for table, group in zip(
            (groups._EXPERT_PARALLEL_GROUP, groups._EXPERT_DATA_PARALLEL_GROUP), self._groups, strict=True
        ):
            table.clear()
            table[self.expert_group_name] = group


def mark_experts(module: nn.Module, num_experts: int, mesh: ProcessMesh) -> None:
    """Marks the spread experts of a module that DeepSpeed's engine will get; every rank calls it, before the optimizer."""
    spread = [parameter for parameter in module.parameters() if _is_spread(parameter)]
    for parameter in spread:
        parameter.allreduce = False  # type: ignore[attr-defined]
        parameter.group_name = _group_name(mesh)  # type: ignore[attr-defined]
    if spread:
        module.add_module("expert_mark", _ExpertMark(num_experts, mesh))


def split_groups(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, with spread experts in parameter groups of their own."""
    divided: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        spread = [parameter for parameter in group["params"] if _is_spread(parameter)]
        rest = [parameter for parameter in group["params"] if not _is_spread(parameter)]
        if rest:
            divided.append({**group, "params": rest})
        if spread:
            divided.append({**group, "params": spread, "moe": True, "name": spread[0].group_name})
    optimizer.param_groups[:] = divided
    return optimizer


def _is_spread(parameter: nn.Parameter) -> bool:
    return "expert" in shard_of(parameter).split_over


def _group_name(mesh: ProcessMesh) -> str:
    # DeepSpeed reads the size out of the name.
    return f"ep_size_{mesh.expert.size}"
