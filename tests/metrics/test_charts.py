"""Charts: nothing of a curve is lost, and nothing leaves the frame."""

import json
import math
import re
from html import unescape
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from pretrain.metrics.charts import (
    Level,
    Mark,
    Series,
    line_chart,
    linear_scale,
    log_scale,
    smoothed,
    thinned,
    tick_format,
)


def waves(count: int) -> list[tuple[float, float]]:
    return [(float(step), math.sin(step / 50) + 0.1 * math.sin(step * 7.0)) for step in range(count)]


def coordinates(figure: str, class_name: str) -> list[tuple[float, float]]:
    """Points of the path of a class."""
    paths = re.findall(rf'<path d="([^"]*)" class="{class_name}"', figure)
    return [(float(x), float(y)) for path in paths for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_thinning_keeps_every_extreme_and_the_ends() -> None:
    points = waves(50_000)
    points[31_417] = (31_417.0, 99.0)
    points[40_001] = (40_001.0, -99.0)
    kept = thinned(points, columns=200)
    assert len(kept) <= 402
    assert {points[0], points[-1], points[31_417], points[40_001]} <= set(kept)
    assert all(a[0] < b[0] for a, b in pairwise(kept))


def test_a_short_series_is_not_thinned() -> None:
    assert thinned(waves(100), columns=50) == waves(100)


def test_a_gap_survives_thinning() -> None:
    points = [(float(step), math.nan if 400 <= step < 600 else 1.0) for step in range(1000)]
    assert any(math.isnan(y) for _, y in thinned(points, columns=100))


def test_smoothing_keeps_a_straight_line_and_does_not_lag() -> None:
    line = [(float(step), 3.0 * step) for step in range(100)]
    assert [y for _, y in smoothed(line, 10)][:-10] == pytest.approx([y for _, y in line][:-10])


def test_smoothing_leaves_out_what_is_not_finite() -> None:
    points = [(0.0, 1.0), (1.0, math.nan), (2.0, 3.0)]
    assert smoothed(points, 1)[1] == (1.0, 2.0)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (3.2, 9.01), (-5.0, 5.0), (1e-7, 3e-4), (0.0, 4.9e6), (7.0, 7.0), (0.0, 0.0)]
)
def test_a_scale_has_a_few_round_ticks_that_span_the_values(low: float, high: float) -> None:
    scale = linear_scale(low, high, 5)
    assert 3 <= len(scale.ticks) <= 12
    assert scale.low <= low and high <= scale.high
    told = [tick_format(scale)(tick) for tick in scale.ticks]
    assert len(set(told)) == len(told), "ticks can be told apart"


def test_a_logarithmic_scale_spreads_decades_evenly() -> None:
    scale = log_scale(0.1, 1000.0)
    steps = [scale(10.0 ** (power + 1)) - scale(10.0**power) for power in range(-1, 3)]
    assert steps == pytest.approx([steps[0]] * 4)
    assert 1.0 in scale.ticks


def test_curves_stay_inside_the_frame_and_break_at_gaps() -> None:
    points = [(float(step), math.nan if step == 50 else math.exp(-step / 20)) for step in range(100)]
    figure = line_chart("Loss", [Series("loss", points, "blue")], levels=[Level("uniform", 9.01)])
    drawn = coordinates(figure, "curve line blue")
    assert len(drawn) == 99
    assert all(0 <= x <= 1000 and 0 <= y <= 1000 for x, y in drawn)
    (path,) = re.findall(r'<path d="([^"]*)" class="curve line blue"', figure)
    assert path.count("M") == 2


def test_a_logarithmic_chart_leaves_out_values_that_are_not_positive() -> None:
    figure = line_chart("norm", [Series("norm", [(1, 0.0), (2, 1.0), (3, 100.0)], "blue")], logarithmic=True)
    assert len(coordinates(figure, "curve line blue")) == 2


def test_a_chart_without_any_value_is_nothing() -> None:
    assert line_chart("x", [Series("a", [], "blue"), Series("b", [(1.0, math.nan)], "red")]) == ""


def test_a_single_point_is_a_dot() -> None:
    figure = line_chart("x", [Series("a", [(3.0, 2.0)], "blue")])
    assert 'class="dot blue"' in figure


def test_a_chart_tells_itself_in_words() -> None:
    figure = line_chart("Loss", [Series("training", [(1.0, 9.0), (600.0, 4.0)], "blue")])
    assert 'aria-label="Loss: training from 9 at 1 to 4 at 600"' in figure


def test_labels_of_close_levels_do_not_cover_each_other() -> None:
    figure = line_chart("Loss", [Series("a", [(1, 1.0), (2, 9.0)], "blue")], levels=[Level("x", 4.9), Level("y", 4.91)])
    tops = [float(top) for top in re.findall(r'class="level-label [^"]*" style="top:([\d.]+)%', figure)]
    assert tops[1] - tops[0] >= 8


def test_a_level_is_named_at_the_end_that_the_curves_leave_free() -> None:
    falling = Series("loss", [(float(step), 9.0 - step / 20) for step in range(100)], "blue")
    figure = line_chart("Loss", [falling], levels=[Level("start", 9.0), Level("end", 4.1)])
    sides = dict(re.findall(r'class="level-label (left|right) [^"]*" style="[^"]*">(start|end)', figure))
    assert sides == {"right": "start", "left": "end"}


def test_marks_say_what_happened() -> None:
    figure = line_chart("Loss", [Series("a", [(1, 1.0), (9, 2.0)], "blue")], marks=[Mark(5, "restart", "<attempt 2>")])
    assert "<title>restart: &lt;attempt 2&gt;</title>" in figure


def test_the_values_for_the_script_are_those_of_the_curve() -> None:
    figure = line_chart("Loss", [Series("a", [(1, 1.25), (2, math.nan), (9, 2.5)], "blue")])
    (data,) = re.findall(r'data-chart="([^"]*)"', figure)
    (curve,) = json.loads(unescape(data))["curves"]
    assert (curve["x"], curve["y"]) == ([1, 9], [1.25, 2.5])


def test_the_drawing_is_well_formed() -> None:
    figure = line_chart("Loss <b>", [Series("a", waves(2000), "blue", "faint"), Series("b", waves(10), "red", "dots")])
    ElementTree.fromstring(figure)
