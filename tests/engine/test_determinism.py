"""Bitwise mode: the same layout trains the same bits twice, and torch is told to hold to it."""

from collections.abc import Iterator

import pytest
import torch

from pretrain.parallel.layout import ParallelLayout
from tests.layouts.cases import Setup
from tests.layouts.parity import Recording
from tests.layouts.recording import record
from tests.worlds import World

CASE = "transformer-tied"
BITWISE = "train.determinism=bitwise"
SETUPS = [
    Setup(ParallelLayout(pp=2, tp=2), more=(BITWISE, "layout.pipeline_schedule=zb-h1", "train.recompute=selective")),
    Setup(ParallelLayout(tp=2, dp=2), zero_stage=3, more=(BITWISE,)),
]


@pytest.fixture(scope="module")
def four() -> Iterator[World]:
    with World(4) as world:
        yield world


def train(setup: Setup) -> tuple[Recording, bool]:
    """Three steps with dropout, and whether torch was told."""
    recording = record(CASE, setup, 3)
    return recording, torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.name)
def test_the_same_layout_gives_the_same_bits_twice(setup: Setup, four: World) -> None:
    for (first, told), (second, _) in zip(four.run(train, setup), four.run(train, setup), strict=True):
        assert told
        assert first.steps == second.steps
        assert len(first.final) == len(second.final) > 0
        for a, b in zip(first.final, second.final, strict=True):
            assert a.shard == b.shard
            assert torch.equal(a.tensor, b.tensor), a.shard.name


def test_the_fastest_mode_takes_the_switches_back(four: World) -> None:
    four.run(train, SETUPS[0])
    assert not any(told for _, told in four.run(train, Setup(ParallelLayout(pp=2, tp=2))))
