"""ZB-H1's order: whole, in time, as short as the paper says, in the memory of 1F1B."""

import itertools
from collections.abc import Callable

import pytest

from pretrain.engine.schedules import Work, zb_h1
from tests.engine.pipeline_theory import duration, one_f_one_b

GRIDS = list(itertools.product((2, 3, 4, 8), (1, 2, 4, 5, 8, 16)))
DEEP = [(stages, micro) for stages, micro in GRIDS if micro >= stages]


def of_kind(forward: float, backward: float, weight: float) -> Callable[[int, Work], float]:
    seconds = {"forward": forward, "backward": backward, "weight": weight}
    return lambda stage, work: seconds[work.kind]


def orders(stages: int, micro_batches: int) -> list[list[Work]]:
    return [zb_h1(stages, stage, micro_batches) for stage in range(stages)]


@pytest.mark.parametrize(("stages", "micro_batches"), GRIDS)
def test_each_pass_of_each_micro_batch_is_done_once_and_in_turn(stages: int, micro_batches: int) -> None:
    for order in orders(stages, micro_batches):
        for kind in ("forward", "backward", "weight"):
            assert [work.micro_batch for work in order if work.kind == kind] == list(range(micro_batches))
        for n in range(micro_batches):
            places = [order.index(Work(kind, n)) for kind in ("forward", "backward", "weight")]
            assert places == sorted(places)


@pytest.mark.parametrize(("stages", "micro_batches"), DEEP)
def test_a_stage_warms_up_with_as_many_forwards_as_there_are_stages_behind_it(stages: int, micro_batches: int) -> None:
    for stage, order in enumerate(orders(stages, micro_batches)):
        first = next(place for place, work in enumerate(order) if work.kind == "backward")
        assert first == stages - stage  # the last of them belongs to the first backward
        assert all(work.kind == "forward" for work in order[:first])


@pytest.mark.parametrize(("stages", "micro_batches"), GRIDS)
def test_at_most_as_many_weights_wait_as_there_are_stages_before(stages: int, micro_batches: int) -> None:
    for stage, order in enumerate(orders(stages, micro_batches)):
        waiting = 0
        for work in order:
            waiting += {"forward": 0, "backward": 1, "weight": -1}[work.kind]
            assert 0 <= waiting <= stage + 1
            if work.kind == "forward":
                assert waiting <= stage


@pytest.mark.parametrize(("stages", "micro_batches"), GRIDS)
def test_no_stage_holds_more_micro_batches_than_the_first_of_1f1b(stages: int, micro_batches: int) -> None:
    for order in orders(stages, micro_batches):
        held = 0
        for work in order:
            held += {"forward": 1, "backward": 0, "weight": -1}[work.kind]
            assert held <= min(stages, micro_batches)


@pytest.mark.parametrize(("stages", "micro_batches"), DEEP)
@pytest.mark.parametrize(("f", "b", "w"), [(20, 20, 20), (20, 25, 15)])
def test_durations_are_those_of_the_formulas(stages: int, micro_batches: int, f: int, b: int, w: int) -> None:
    seconds = of_kind(f, b, w)
    ours = duration(orders(stages, micro_batches), seconds, sent_after="backward")
    assert ours == micro_batches * (f + b + w) + (stages - 1) * (f + b - w)
    plain = [one_f_one_b(stages, stage, micro_batches) for stage in range(stages)]
    theirs = duration(plain, seconds, sent_after="weight")
    assert theirs == (micro_batches + stages - 1) * (f + b + w)


def test_four_stages_and_eight_micro_batches_take_540_instead_of_660() -> None:
    seconds = of_kind(20, 20, 20)
    assert duration(orders(4, 8), seconds, sent_after="backward") == 540


@pytest.mark.parametrize(("stages", "micro_batches"), GRIDS)
def test_fewer_micro_batches_than_stages_wait_for_nothing_that_never_comes(stages: int, micro_batches: int) -> None:
    seconds = of_kind(1, 1, 1)
    assert duration(orders(stages, micro_batches), seconds, sent_after="backward") > 0
