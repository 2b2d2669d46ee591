"""DeepSpeed's shapes of our parts: pipeline layers from layer specs, and the object it asks about model parallelism.

Alternatives not taken: DeepSpeed's AutoTP (two axes only, and it leaves embeddings whole), its grid as the source of groups
(it exists only after the model is built).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.pipe import LayerSpec as DeepSpeedLayerSpec
from deepspeed.pipe import PipelineModule
from deepspeed.pipe import TiedLayerSpec as DeepSpeedTiedLayerSpec
from torch import nn

from pretrain.model.carry import Carry
from pretrain.model.layers import LayerSpec
from pretrain.parallel.mesh import Axis, ProcessMesh

Names = tuple[str, ...]


def _run(layer: Any, names_in: Names, names_out: Names, tensors: tuple[torch.Tensor, ...]) -> Any:
    """Applies a layer of carries to what DeepSpeed passes: a tuple in sending order."""
    carry: Carry = layer(dict(zip(names_in, tensors, strict=True)))
    return tuple(carry[name] for name in names_out)


class PipelineLayer(nn.Module):
    """One layer of the list as DeepSpeed's pipeline calls it: tuple in, tuple out."""

    def __init__(self, spec: LayerSpec, names_in: Names, names_out: Names) -> None:
        super().__init__()
        self.layer = spec.build()
        self.names_in, self.names_out = names_in, names_out

    def forward(self, tensors: tuple[torch.Tensor, ...]) -> Any:
        """Tensors in the order of `names_in` to tensors in the order of `names_out`."""
        return _run(self.layer, self.names_in, self.names_out, tensors)


class _TiedSpec(DeepSpeedTiedLayerSpec):
    """A use of a module that several layers share; DeepSpeed keeps one copy a stage and sums the copies' gradients."""

    def __init__(self, first: LayerSpec, spec: LayerSpec, names_in: Names, names_out: Names) -> None:
        def apply(module: nn.Module, tensors: tuple[torch.Tensor, ...]) -> Any:
            layer = module if spec.apply is None else partial(spec.apply, module)
            return _run(layer, names_in, names_out, tensors)

        assert spec.tied_key is not None
        super().__init__(spec.tied_key, nn.Module, forward_fn=apply, tied_weight_attr="weight")
        self.first = first

    def build(self, log: bool = False) -> nn.Module:
        """The shared module, made as its first use makes it, so that every stage starts from the same weight."""
        return self.first.build()


def pipeline_layers(specs: Sequence[LayerSpec], boundaries: Sequence[Names]) -> list[DeepSpeedLayerSpec]:
    """DeepSpeed's layer list; `boundaries[i]` names what is present before layer i (pretrain.model.carry.trace_fields)."""
    first_use = {spec.tied_key: spec for spec in reversed(specs) if spec.tied_key is not None}
    layers: list[DeepSpeedLayerSpec] = []
    for index, spec in enumerate(specs):
        names_in, names_out = boundaries[index], boundaries[index + 1]
        if spec.tied_key is None:
            layers.append(DeepSpeedLayerSpec(PipelineLayer, spec, names_in, names_out))
        else:
            layers.append(_TiedSpec(first_use[spec.tied_key], spec, names_in, names_out))
    return layers


def balance(costs: Sequence[float], stages: int, starts: Sequence[bool] | None = None) -> list[int]:
    """Cuts a list of layers into contiguous, non-empty stages so that the costliest stage is as cheap as can be.

    Args:
        costs: of the layers.
        stages: to fill.
        starts: whether a stage may start with a layer; None: with any.

    Returns stages + 1 bounds. Dynamic programming, O(stages x layers^2). Raises ValueError with fewer such layers than stages.
    """
    n, starts = len(costs), starts or [True] * len(costs)
    if sum(starts) < stages:
        raise ValueError(f"{sum(starts)} layers cannot fill {stages} pipeline stages")
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    best = [[float("inf")] * (n + 1) for _ in range(stages + 1)]
    cut = [[0] * (n + 1) for _ in range(stages + 1)]
    best[0][0] = 0.0
    for stage in range(1, stages + 1):
        for end in range(stage, n + 1):
            for start in (start for start in range(stage - 1, end) if starts[start]):
                worst = max(best[stage - 1][start], prefix[end] - prefix[start])
                if worst < best[stage][end]:
                    best[stage][end], cut[stage][end] = worst, start
    bounds = [n]
    for stage in range(stages, 0, -1):
        bounds.append(cut[stage][bounds[-1]])
    return bounds[::-1]


class BalancedPipelineModule(PipelineModule):
    """DeepSpeed's pipeline module, cut at given bounds: its own methods weigh parameters, not work."""

    def __init__(self, layers: list[DeepSpeedLayerSpec], bounds: list[int], **keywords: Any) -> None:
        self._bounds = bounds
        super().__init__(layers, **keywords)

    def _partition_layers(self, method: str = "uniform") -> None:
        self.parts = self._bounds
        self._set_bounds(self.parts[self.stage_id], self.parts[self.stage_id + 1])


class ModelParallelUnit:
    """What DeepSpeed asks of an `mpu`: groups, ranks and sizes of the model and the data axis.

    Always given, also at tp=1: a plain engine would otherwise take the last pipeline's from a module global and fail.
    """

    def __init__(self, mesh: ProcessMesh) -> None:
        self._model, self._data = mesh.model, mesh.data
        self._model_group, self._data_group = real_group(mesh.model), real_group(mesh.data)

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """Ranks of the model axis."""
        return self._model_group

    def get_model_parallel_rank(self) -> int:
        """Coordinate on the model axis."""
        return self._model.rank

    def get_model_parallel_world_size(self) -> int:
        """Size of the model axis."""
        return self._model.size

    get_tensor_model_parallel_group = get_model_parallel_group
    get_tensor_model_parallel_rank = get_model_parallel_rank
    get_tensor_model_parallel_world_size = get_model_parallel_world_size

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """Ranks of the data axis."""
        return self._data_group

    def get_data_parallel_rank(self) -> int:
        """Coordinate on the data axis."""
        return self._data.rank

    def get_data_parallel_world_size(self) -> int:
        """Size of the data axis."""
        return self._data.size


def real_group(axis: Axis) -> dist.ProcessGroup:
    """The axis's group; DeepSpeed needs a real one also for a single rank."""
    if axis.group is not None:
        return axis.group
    group = dist.new_group(list(axis.ranks), use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup)
    return group
