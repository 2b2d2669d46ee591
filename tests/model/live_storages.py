"""What lives: every storage that an operator makes, with its size, and which of them are still held."""

from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveStorages(TorchDispatchMode):
    """Watches the storages that operators make within the block, on this thread, in forward and backward.

    Parameters, inputs and what else was there before are left out. Not seen are temporaries within a kernel.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[int, StorageWeakRef] = {}
        self._made: dict[int, int] = {}
        self.largest = 0
        """Bytes of the largest storage so far."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._note(tensor)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            if self._note(tensor):
                size = tensor.untyped_storage().nbytes()
                self._made[tensor.untyped_storage()._cdata] = size
                self.largest = max(self.largest, size)
        return result

    def _note(self, tensor: torch.Tensor) -> bool:
        """Whether the storage is seen for the first time."""
        storage = tensor.untyped_storage()
        is_new = storage._cdata not in self._known
        if is_new:  # a weak reference keeps the number from being given to another storage
            self._known[storage._cdata] = StorageWeakRef(storage)
        return is_new

    @property
    def bytes(self) -> int:
        """Of all storages that are still held."""
        return sum(size for number, size in self._made.items() if not self._known[number].expired())


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
