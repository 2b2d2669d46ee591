"""Starting and ending the world of ranks, so that DeepSpeed compiles nothing on a CPU and prints nothing.

DeepSpeed builds a shared-memory communicator at every `init_distributed` on a CPU (a minute and a C++ compiler) unless its
table of compatible operators is empty before that call. The accelerator is named, for its detection would otherwise import
what is installed and guess.
"""

import logging
import os

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, rendezvous  # pyright: ignore[reportPrivateImportUsage]


def start_world(device_kind: str, attempt: int = 0) -> torch.device:
    """Joins the process group that the launcher's environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...).

    Args:
        device_kind: `cpu` (gloo) or `cuda` (NCCL).
        attempt: number of this start of the ranks. The store is one for all attempts of a launcher, and holds the addresses of
            ranks that are dead: with the same number as before, ranks would connect to those.

    Returns:
        The device of this rank.
    """
    os.environ.setdefault("LOCAL_RANK", os.environ.get("RANK", "0"))
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if device_kind == "cuda" else torch.device("cpu")
    if device_kind == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        join_group(device, attempt)
    start_deepspeed(device_kind)
    return device


def join_group(device: torch.device, attempt: int) -> None:
    """Makes the process group of all ranks; `attempt` as `start_world` has it."""
    store, rank, size = next(rendezvous("env://"))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore(f"attempt-{attempt}", store),
        rank=rank,
        world_size=size,
        device_id=device if device.type == "cuda" else None,
    )


def start_deepspeed(device_kind: str) -> None:
    """Wraps the existing process group in DeepSpeed's communication layer; a second call does nothing."""
    os.environ["DS_ACCELERATOR"] = device_kind
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if device_kind == "cpu":
        setattr(deepspeed.ops, "__compatible_ops__", {})  # noqa: B010 (a module __getattr__ makes it; types do not know it)
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


def end_world() -> None:
    """Leaves the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
