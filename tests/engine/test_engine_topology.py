"""ParallelLayout is DeepSpeed's topology; stages are cut where they balance."""

import itertools
import os

import pytest

from pretrain.parallel.layout import AXIS_NAMES, ParallelLayout

os.environ["DS_ACCELERATOR"] = "cpu"

SIZES = list(itertools.product((1, 2, 3), (1, 2, 4), (1, 2)))


@pytest.mark.parametrize(("pp", "dp", "tp"), SIZES)
def test_layout_is_deepspeeds_topology(pp: int, dp: int, tp: int) -> None:
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    topology = PipeModelDataParallelTopology(num_pp=pp, num_mp=tp, num_dp=dp)
    layout = ParallelLayout(pp=pp, dp=dp, tp=tp)
    assert layout.world_size == topology.world_size()
    for rank in range(layout.world_size):
        here, there = layout.coordinates(rank), topology.get_coord(rank)
        assert (here.pipe, here.data, here.model) == (there.pipe, there.data, there.model)
        assert layout.rank(here.pipe, here.data, here.model) == rank
    for axis in AXIS_NAMES[:3]:
        theirs = {tuple(ranks) for ranks in topology.get_axis_comm_lists(axis)}
        if layout.size(axis) > 1:
            assert set(layout.groups(axis)) == theirs


def test_every_rank_is_in_one_group_of_each_axis() -> None:
    layout = ParallelLayout(pp=2, dp=3, tp=2, ring=2, ulysses=2, ep=3)
    for axis in AXIS_NAMES:
        members = sorted(rank for group in layout.groups(axis) for rank in group)
        assert members == list(range(layout.world_size))


def test_a_rank_outside_the_grid_is_refused() -> None:
    with pytest.raises(IndexError):
        ParallelLayout(pp=2).coordinates(2)


def _worst(costs: list[float], bounds: list[int]) -> float:
    return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_no_other_cut_has_a_cheaper_worst_stage(stages: int) -> None:
    from pretrain.engine.adapters import balance

    costs = [0.5, 0.1, 3.0, 3.0, 3.0, 3.0, 0.2, 4.0]
    bounds = balance(costs, stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(costs)
    assert all(a < b for a, b in itertools.pairwise(bounds))
    cuts = itertools.combinations(range(1, len(costs)), stages - 1)
    assert _worst(costs, bounds) == min(_worst(costs, [0, *cut, len(costs)]) for cut in cuts)


def test_no_stage_starts_with_a_layer_that_may_not_start_one() -> None:
    from pretrain.engine.adapters import balance

    assert balance([0.0, 0.0, 1.0, 1.0], 3, [True, False, True, True]) == [0, 2, 3, 4]
    with pytest.raises(ValueError, match="3 layers cannot fill 4"):
        balance([0.0, 0.0, 1.0, 1.0], 4, [True, False, True, True])


def test_more_stages_than_layers_cannot_be_cut() -> None:
    from pretrain.engine.adapters import balance

    with pytest.raises(ValueError, match="3 layers cannot fill 4"):
        balance([1.0, 1.0, 1.0], 4)


def test_the_data_axis_is_a_grid_of_batch_ring_and_ulysses_with_experts_across() -> None:
    layout = ParallelLayout(dp=2, ring=2, ulysses=2, ep=4)
    assert layout.groups("ulysses") == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert layout.groups("ring") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert layout.groups("batch") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert layout.groups("expert") == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert layout.groups("expert_data") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert layout.groups("data") == [tuple(range(8))]


def test_experts_that_do_not_divide_the_data_axis_are_refused() -> None:
    with pytest.raises(ValueError, match="ep=3 must divide the 4 ranks"):
        ParallelLayout(dp=4, ep=3).groups("expert")
