import pytest

from benchmarks.contest import interleave
from benchmarks.ratio import Ratio


def test_every_round_gives_each_contestant_one_step_in_a_rotating_order():
    order: list[str] = []

    def contestant(name: str):
        def step(batch: object) -> float:
            order.append(name)
            return float(len(order))

        return step

    timings = interleave({name: contestant(name) for name in "abc"}, [[]] * 4, warmup=1)
    assert "".join(order) == "abcbcacababc"
    assert {name: len(values) for name, values in timings.wall_s.items()} == {"a": 3, "b": 3, "c": 3}
    assert {name: len(values) for name, values in timings.losses.items()} == {"a": 4, "b": 4, "c": 4}


def test_rounds_that_are_all_warm_up_are_refused():
    with pytest.raises(ValueError, match="leave none to time"):
        interleave({}, [[]] * 2, warmup=2)


def test_ratio_stands_a_round_that_was_disturbed():
    ratio = Ratio.of([1.02, 1.03, 1.01, 1.02, 9.0, 1.02, 1.03])
    assert ratio.median == 1.02
    assert ratio.low <= ratio.median <= ratio.high < 9.0
