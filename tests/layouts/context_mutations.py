"""Seeded faults of sequences that ranks share: ring, Ulysses, and the parts of a batch, for mutations.py."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from pretrain.engine import base, build
from pretrain.model import attention, ring_attention
from pretrain.parallel import sequence
from pretrain.parallel.mesh import Axis
from pretrain.parallel.ring import Passing
from tests.layouts.patching import replaced


def ring_hop_skipped() -> AbstractContextManager[Any]:
    def change(add: Any) -> Any:
        return lambda self, hop, *rest: add(self, hop, *rest) if hop.mask.causal or hop.queries == slice(None) else None

    return replaced(ring_attention._Merged, "add", change)


def log_sums_merged_by_the_larger() -> AbstractContextManager[Any]:
    return patch.object(torch, "logaddexp", torch.maximum)


def blind_rows_weigh_one() -> AbstractContextManager[Any]:
    def change(add: Any) -> Any:
        return lambda self, hop, *rest: add(self, replace(hop, blind=None), *rest)

    return replaced(ring_attention._Merged, "add", change)


def key_gradients_stay_at_the_last_hop() -> AbstractContextManager[Any]:
    def change(backward: Any) -> Any:
        def left(ctx: Any, grad: torch.Tensor) -> Any:
            made = 0

            def passing(tensor: torch.Tensor, axis: Axis) -> Any:
                nonlocal made
                made += 1
                under_way = Passing(tensor, axis)
                if made < 2 * axis.size - 1:
                    return under_way
                under_way.wait()
                return SimpleNamespace(wait=lambda: tensor)

            with patch.object(ring_attention, "Passing", passing):
                return backward(ctx, grad)

        return staticmethod(left)

    return replaced(ring_attention._RingAttention, "backward", change)


def positions_of_a_ring_in_a_row() -> AbstractContextManager[Any]:
    def in_a_row(length: int, rank: int, size: int, device: torch.device | None = None) -> torch.Tensor:
        return torch.arange(length, device=device).chunk(size)[rank]

    return patch.object(sequence, "zigzag", in_a_row)


def labels_of_the_first_part() -> AbstractContextManager[Any]:
    def change(part: Any) -> Any:
        def cut(batch: Any, split: sequence.SequenceSplit) -> Any:
            mine = part(batch, split)
            return replace(mine, labels=batch.labels[:, : mine.labels.shape[1]])

        return cut

    return replaced(base, "context_part", change)


def heads_go_to_the_next_rank() -> AbstractContextManager[Any]:
    def change(build_mixer: Any) -> Any:
        return lambda ring, drop, first_head: build_mixer(ring, drop, first_head ^ 2)

    return replaced(attention, "build_mixer", change)


@contextlib.contextmanager
def deepspeed_shares_sequences_itself() -> Iterator[None]:
    from deepspeed.utils import groups

    def change(deepspeed_config: Any) -> Any:
        sizes = {"sequence_parallel_size": 2, "data_parallel_size": 1}
        return lambda *arguments, **more: deepspeed_config(*arguments, **more) | sizes

    # DeepSpeed leaves the groups that it makes of the two in a global, for every later engine.
    with patch.object(groups, "mesh_device", None), replaced(build, "deepspeed_config", change):
        yield
