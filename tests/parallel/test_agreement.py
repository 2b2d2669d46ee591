from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from pretrain.parallel.agreement import gather_texts, world_maximum, world_sum
from pretrain.parallel.layout import ParallelLayout
from pretrain.parallel.mesh import ProcessMesh
from tests.worlds import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(3) as ranks:
        yield ranks


def gather(texts: list[str]) -> list[str]:
    return gather_texts(texts[dist.get_rank()], ProcessMesh.create(ParallelLayout(pp=3), torch.device("cpu")))


@pytest.mark.parametrize("texts", [["a", "", "longer: äöü €"], ["", "", ""], ["x" * 100_000, "y", "z"]])
def test_texts_of_any_length_reach_every_rank_in_order(world: World, texts: list[str]) -> None:
    assert world.run(gather, texts) == [texts] * 3


def combine() -> tuple[list[float], list[float]]:
    mesh, rank = ProcessMesh.create(ParallelLayout(dp=3), torch.device("cpu")), dist.get_rank()
    values = [float(rank), -float(rank), 0.1 * rank]
    return world_maximum(values, mesh), world_sum(values, mesh)


def test_maxima_and_sums_are_those_of_all_ranks(world: World) -> None:
    for maxima, sums in world.run(combine):
        assert maxima == [2.0, 0.0, 0.2]
        assert sums == pytest.approx([3.0, -3.0, 0.3])


def test_one_process_answers_itself() -> None:
    mesh = ProcessMesh.single()
    assert gather_texts("alone", mesh) == ["alone"]
    assert world_maximum([1.5, -2.0], mesh) == [1.5, -2.0] == world_sum([1.5, -2.0], mesh)
