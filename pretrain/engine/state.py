"""Where DeepSpeed keeps the training state, as fragments of named global parameters: one class for each of its three forms.

DeepSpeed's own checkpoints are pickled per layout and written in place. Fragments say which slice of which global parameter a
piece of memory is, so that a checkpoint can be written without a layout and read into another (pretrain.checkpoint).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from pretrain.engine.protocol import Fragment, StateKind
from pretrain.parallel.mesh import ProcessMesh
from pretrain.parallel.shard import shard_of

MOMENTS: tuple[StateKind, StateKind] = ("exp_avg", "exp_avg_sq")


class TrainingState(Protocol):
    """Fragments of the state, and what must follow after they were written to."""

    def fragments(self) -> Iterator[Fragment]:
        """All state that this rank holds, in a fixed order."""
        ...

    def finish_load(self, updates: int) -> None:
        """Refreshes the parameters from the masters and sets the optimizer's count of updates (skipped steps excluded)."""
        ...


def training_state(
    zero_stage: int, parameters: Sequence[nn.Parameter], optimizer: Any, mesh: ProcessMesh
) -> TrainingState:
    """The state of an initialised DeepSpeed engine: `optimizer` is `engine.optimizer`."""
    if zero_stage == 0:
        return WholeState(parameters, optimizer, mesh)
    if zero_stage == 3:
        return PartitionedState(parameters, optimizer, mesh)
    return FlatState(parameters, optimizer, mesh)


def _start_moments(optimizer: torch.optim.Optimizer, leaves: Sequence[torch.Tensor]) -> None:
    """Creates Adam's state, which torch makes at the first step only, so that it can be saved and loaded before one."""
    for leaf in leaves:
        state = optimizer.state[leaf]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=leaf.device)
            for kind in MOMENTS:
                state[kind] = torch.zeros_like(leaf, requires_grad=False)


def _set_updates(optimizer: torch.optim.Optimizer, leaves: Sequence[torch.Tensor], updates: int) -> None:
    for leaf in leaves:
        optimizer.state[leaf]["step"].fill_(float(updates))


def _is_written_here(parameter: nn.Parameter, mesh: ProcessMesh) -> bool:
    """Whether this rank's copy is the one to save: replicas by coordinate 0 of the model axis, tied copies by the first stage."""
    split = getattr(parameter, "tensor_model_parallel", False)
    tied_copy = getattr(parameter, "ds_pipe_replicated", False)
    return (split or mesh.model.rank == 0) and not tied_copy


def _replica(parameter: nn.Parameter, mesh: ProcessMesh) -> int:
    """Which of the data ranks' equal copies this is."""
    return mesh.expert_data.rank if "expert" in shard_of(parameter).split_over else mesh.data.rank


class WholeState:
    """ZeRO-0: every data rank holds everything; the optimizer steps the parameters themselves (fp32)."""

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, mesh: ProcessMesh) -> None:
        self._parameters, self._optimizer, self._mesh = list(parameters), optimizer, mesh
        _start_moments(optimizer, self._parameters)

    def fragments(self) -> Iterator[Fragment]:
        """One fragment per kind and parameter."""
        for parameter in self._parameters:
            writes = _is_written_here(parameter, self._mesh) and _replica(parameter, self._mesh) == 0
            state = self._optimizer.state[parameter]
            tensors = {"weight": parameter.data, **{kind: state[kind] for kind in MOMENTS}}
            for kind, tensor in tensors.items():
                yield Fragment(kind, shard_of(parameter), tuple(parameter.shape), 0, tensor.view(-1), writes)  # type: ignore[arg-type]

    def finish_load(self, updates: int) -> None:
        """The fragments are the parameters: only the count is set."""
        _set_updates(self._optimizer, self._parameters, updates)


class FlatState:
    """ZeRO-1 and 2, and DeepSpeed's BF16 optimizer: each data rank owns a range of one flat buffer per parameter group."""

    def __init__(self, parameters: Sequence[nn.Parameter], zero: Any, mesh: ProcessMesh) -> None:
        self._parameters, self._zero, self._mesh = list(parameters), zero, mesh
        flat_partitions = getattr(zero, "fp32_groups_flat_partition", None)  # the BF16 optimizer's name
        self._leaves = zero.single_partition_of_fp32_groups if flat_partitions is None else flat_partitions
        _start_moments(zero.optimizer, self._leaves)
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()

    def fragments(self) -> Iterator[Fragment]:
        """Up to one fragment per kind and parameter: the part inside this rank's range."""
        for parameter in self._parameters:
            mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is None:
                continue
            tensors = {"weight": mapping.hp_fragment, **{kind: mapping.optim_fragment[kind] for kind in MOMENTS}}
            start, writes = mapping.lp_fragment_address.start, _is_written_here(parameter, self._mesh)
            for kind, tensor in tensors.items():
                yield Fragment(kind, shard_of(parameter), tuple(parameter.shape), start, tensor.data, writes)  # type: ignore[arg-type]

    def finish_load(self, updates: int) -> None:
        """Masters to parameters (gathered over the data axis), and Adam's count."""
        _set_updates(self._zero.optimizer, self._leaves, updates)
        self._zero.update_lp_params()


class PartitionedState:
    """ZeRO-3: each data rank owns an equal piece of every parameter; the last piece may be shorter, or empty."""

    def __init__(self, parameters: Sequence[nn.Parameter], zero: Any, mesh: ProcessMesh) -> None:
        self._parameters, self._zero, self._mesh = list(parameters), zero, mesh
        self._leaves = list(zero.fp32_partitioned_groups_flat)
        _start_moments(zero.optimizer, self._leaves)

    def fragments(self) -> Iterator[Fragment]:
        """Up to one fragment per kind and parameter."""
        zero = self._zero
        for parameter in self._parameters:
            piece: int = parameter.partition_numel()  # type: ignore[attr-defined,operator]
            total: int = parameter.ds_numel  # type: ignore[attr-defined,assignment]
            start = piece * self._mesh.data.rank
            length = max(0, min(piece, total - start))
            if length == 0:
                continue
            group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
            leaf = zero.fp32_partitioned_groups_flat[group]
            state = zero.optimizer.state[leaf]
            tensors = {"weight": leaf.data, **{kind: state[kind] for kind in MOMENTS}}
            shape = tuple(parameter.ds_shape)  # type: ignore[attr-defined,arg-type]
            for kind, tensor in tensors.items():
                view = tensor.narrow(0, offset, length)
                yield Fragment(kind, shard_of(parameter), shape, start, view, _is_written_here(parameter, self._mesh))  # type: ignore[arg-type]

    def finish_load(self, updates: int) -> None:
        """Masters to the low-precision partitions, which are then pointed to anew; gathered parameters are dropped."""
        zero = self._zero
        _set_updates(zero.optimizer, self._leaves, updates)
        zero.checkpoint_event_prologue()
        for group, master in enumerate(zero.fp32_partitioned_groups_flat):
            low = zero.fp16_partitioned_groups_flat[group]
            low.data.copy_(master.data)
            partitions = zero.fp16_partitioned_groups[group]
            for partition, updated in zip(partitions, zero.unflatten(low, partitions), strict=True):
                partition.data = updated.data
        zero.checkpoint_event_epilogue()
