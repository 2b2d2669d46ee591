"""Small facts on which all ranks of a world must agree: texts of any length, and maxima of a few numbers.

Texts travel as bytes in tensors. Not taken: `all_gather_object`, which unpickles what peers send. Cost: two all-gathers
for a text, one all-reduce for the maxima, some tenths of a millisecond over gloo.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist

from pretrain.parallel.mesh import ProcessMesh


def gather_texts(text: str, mesh: ProcessMesh) -> list[str]:
    """The text of every rank, in the order of ranks; every rank must call it. It is a barrier too."""
    if mesh.layout.world_size == 1:
        return [text]
    content = text.encode()
    length = torch.tensor([len(content)], dtype=torch.int64, device=mesh.device)
    lengths = [torch.empty_like(length) for _ in range(mesh.layout.world_size)]
    dist.all_gather(lengths, length)
    sizes = [int(size) for size in lengths]
    padded = torch.zeros(max(1, *sizes), dtype=torch.uint8, device=mesh.device)
    padded[: len(content)] = torch.frombuffer(bytearray(content or b"\0"), dtype=torch.uint8)[: len(content)]
    rows = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(rows, padded)
    return [row[:size].cpu().numpy().tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


def world_maximum(values: Sequence[float], mesh: ProcessMesh) -> list[float]:
    """The largest of each number over all ranks; every rank must call it with as many."""
    if mesh.layout.world_size == 1:
        return list(values)
    maxima = torch.tensor(values, dtype=torch.float64, device=mesh.device)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    return maxima.tolist()


def world_sum(values: Sequence[float], mesh: ProcessMesh) -> list[float]:
    """The sum of each number over all ranks; every rank must call it with as many."""
    if mesh.layout.world_size == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64, device=mesh.device)
    dist.all_reduce(sums, op=dist.ReduceOp.SUM)
    return sums.tolist()
