"""Reading a safetensors file through a memory map: tensors are views, and only the pages that are looked at are read.

Not taken: `safetensors.safe_open`, whose slices of a flat tensor are contiguous: the columns of a row-parallel weight would be
read with all that lies between them.
"""

import json
from pathlib import Path

import numpy as np
import torch

from pretrain.checkpoint.format import DamagedFile

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
_LENGTH_BYTES = 8


class TensorFile:
    """The flat tensors of a file by key. Raises DamagedFile where it is no safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Copy-on-write: nobody writes, but torch warns of memory that cannot be written to.
            self._bytes = torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="c"))
            length = int.from_bytes(self._bytes[:_LENGTH_BYTES].numpy().tobytes(), "little")
            self._entries = json.loads(self._bytes[_LENGTH_BYTES : _LENGTH_BYTES + length].numpy().tobytes())
        except (OSError, ValueError) as error:
            raise DamagedFile(path, f"is no safetensors file ({error})") from error
        self._first = _LENGTH_BYTES + length

    def tensor(self, key: str) -> torch.Tensor:
        """(n,) a view of the map."""
        try:
            entry = self._entries[key]
            start, stop = entry["data_offsets"]
            return self._bytes[self._first + start : self._first + stop].view(_DTYPES[entry["dtype"]])
        except (KeyError, RuntimeError) as error:
            raise DamagedFile(self.path, f"holds no readable tensor {key!r} ({error})") from error
