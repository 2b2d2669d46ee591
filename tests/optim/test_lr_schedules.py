import itertools
import math

import pytest

from pretrain.optim.schedules import Schedule, build_schedule
from pretrain.optim.settings import ScheduleSettings

PEAK = 3e-3


def schedule(total_steps: int = 100, **settings: object) -> Schedule:
    shape = ScheduleSettings.model_validate(settings)
    return build_schedule(shape, peak_lr=PEAK, d_model=512, total_steps=total_steps)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warm_up_rises_in_equal_steps_to_the_peak_and_never_starts_at_zero(name: str) -> None:
    lr = schedule(name=name, warmup_steps=10)
    assert [lr(step) for step in range(10)] == pytest.approx([PEAK * (step + 1) / 10 for step in range(10)])


@pytest.mark.parametrize(("name", "middle"), [("cosine", 0.55), ("linear", 0.55), ("constant", 1.0)])
def test_decay_passes_its_middle_and_ends_at_the_final_fraction(name: str, middle: float) -> None:
    lr = schedule(name=name, warmup_steps=20, final_fraction=0.1)
    assert lr(59) == pytest.approx(PEAK * middle)
    assert lr(99) == pytest.approx(PEAK * (1.0 if name == "constant" else 0.1))
    assert lr(10_000) == lr(99)


def test_cosine_is_steepest_in_its_middle() -> None:
    lr = schedule(name="cosine", final_fraction=0.0)
    falls = [before - after for before, after in itertools.pairwise(lr(step) for step in range(100))]
    assert falls.index(max(falls)) in (48, 49)


def test_decay_steps_override_the_length_of_the_run() -> None:
    lr = schedule(name="linear", decay_steps=50, final_fraction=0.0)
    assert lr(24) == pytest.approx(PEAK / 2)
    assert lr(49) == 0.0


def test_noam_is_the_formula_of_the_paper_scaled_by_the_factor() -> None:
    lr = build_schedule(ScheduleSettings(name="noam", warmup_steps=4000), peak_lr=2.0, total_steps=100_000, d_model=512)
    for t in (1, 7, 3999, 4000, 4001, 100_000):
        assert lr(t - 1) == pytest.approx(2.0 * 512**-0.5 * min(t**-0.5, t * 4000**-1.5))
    assert max(range(0, 20_000, 3), key=lr) == 3999
    # The base model's published peak: 7e-4.
    assert lr(3999) / 2.0 == pytest.approx(6.99e-4, rel=1e-3)


def test_noam_without_warm_up_starts_at_its_largest_and_is_finite() -> None:
    lr = build_schedule(ScheduleSettings(name="noam"), peak_lr=1.0, d_model=256, total_steps=10)
    assert lr(0) == pytest.approx(1 / 16)
    assert lr(3) == pytest.approx(1 / 32)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "noam"])
@pytest.mark.parametrize("warmup", [0, 1, 99, 100, 200])
def test_any_warm_up_length_gives_positive_finite_rates_no_higher_than_the_peak(name: str, warmup: int) -> None:
    lr = schedule(name=name, warmup_steps=warmup)
    rates = [lr(step) for step in range(300)]
    assert all(math.isfinite(rate) and 0 < rate <= PEAK * (1 + 1e-12) for rate in rates)
