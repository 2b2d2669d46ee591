"""Line charts as plain SVG inside HTML: sharp at any width, drawn without a library.

The SVG is stretched to its box with strokes that keep their width; texts are HTML beside it, so that they stay readable on a
telephone. Long series are thinned to at most two points a column, the least and the greatest, so no spike is lost. A few
lines of script show the values under the pointer; without it the chart is complete.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pretrain.html import Fragment, element, join

Color = Literal["blue", "orange", "green", "purple", "red", "faint"]
Point = tuple[float, float]

MAX_COLUMNS = 360
"""Columns of a thinned series, two points each."""
_SIDE = 1000.0
_LABEL_GAP = 8.0
"""Least distance between two level labels, in percent of the height."""


@dataclass(frozen=True)
class Series:
    """A curve. Points that are not finite make a gap."""

    label: str
    points: Sequence[Point]
    color: Color
    look: Literal["line", "faint", "dots"] = "line"
    """`faint`: a thin background curve; `dots`: few points, marked."""


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with."""

    label: str
    value: float
    color: Color = "faint"


@dataclass(frozen=True)
class Mark:
    """A vertical line: something happened there."""

    x: float
    kind: str
    detail: str
    color: Color = "red"


@dataclass(frozen=True)
class Scale:
    """Values to 0 .. 1, and where its ticks are."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Share of the way from low to high."""
        if self.logarithmic:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    levels: Sequence[Level] = (),
    marks: Sequence[Mark] = (),
    logarithmic: bool = False,
    form: Callable[[float], str] | None = None,
    size: Literal["tall", "small"] = "small",
) -> Fragment:
    """A figure with its title, legend, axes and curves; nothing where no series has a point.

    Args:
        title: what the y-axis shows.
        series: the curves, later ones on top.
        x_label: unit of the x-axis.
        levels, marks: lines across and upright.
        logarithmic: whether y is; values that are not positive are left out then.
        form: how a y value is written; by default with as many digits as the ticks need.
        size: height.
    """
    shown = [_cleaned(one, logarithmic) for one in series]
    finite = [point for one in shown for point in one.points if math.isfinite(point[1])]
    if not finite:
        return Fragment("")
    xs = [x for x, _ in finite]
    ys = [y for _, y in finite] + [level.value for level in levels]
    x_scale = linear_scale(min(xs), max(xs), 6, widen=False)
    y_scale = log_scale(min(ys), max(ys)) if logarithmic else linear_scale(min(ys), max(ys), 5)
    write = form or tick_format(y_scale)
    thin = [Series(one.label, thinned(one.points), one.color, one.look) for one in shown]
    plot = element(
        "div",
        *_y_axis(y_scale, write),
        _svg(title, thin, levels, marks, x_scale, y_scale, write),
        *_level_labels(levels, thin, y_scale),
        *_x_axis(x_scale, x_label),
        element("div", class_="tip", hidden="", aria_hidden="true"),
        class_=f"plot {size}",
        style=f"--gutter:{12 + 7.2 * max(len(write(tick)) for tick in y_scale.ticks):.0f}px",
        data_chart=_data(thin, x_scale, x_label),
    )
    caption = element("figcaption", element("h3", title), _legend(shown, marks) if len(shown) > 1 else None)
    return element("figure", caption, plot, class_="chart panel")


def thinned(points: Sequence[Point], columns: int = MAX_COLUMNS) -> list[Point]:
    """At most two points a column, its least and its greatest y, in order of x; the first and the last point stay."""
    if len(points) <= 2 * columns:
        return list(points)
    kept = {0, len(points) - 1}
    for column in range(columns):
        indices = range(column * len(points) // columns, (column + 1) * len(points) // columns)
        finite = [index for index in indices if math.isfinite(points[index][1])]
        # A column without any value keeps one point: the gap.
        kept |= (
            {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])}
            if finite
            else {indices[0]}
        )
    return [points[index] for index in sorted(kept)]


def smoothed(points: Sequence[Point], half_width: int) -> list[Point]:
    """Means over `half_width` points to either side. At the start, where curves are steep, the window shrinks evenly, so that the
    mean does not lag behind; at the end, where they are flat, it loses its right half alone, so that the mean stays calm."""
    sums, counts = [0.0], [0]
    for _, y in points:
        sums.append(sums[-1] + (y if math.isfinite(y) else 0.0))
        counts.append(counts[-1] + math.isfinite(y))
    result = []
    for index, (x, _) in enumerate(points):
        left = min(half_width, index)
        first, last = index - left, min(index + left + 1, len(points))
        count = counts[last] - counts[first]
        result.append((x, (sums[last] - sums[first]) / count if count else math.nan))
    return result


def linear_scale(low: float, high: float, count: int, *, widen: bool = True) -> Scale:
    """A scale with about `count` ticks at round numbers; `widen` moves the ends out to ticks."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if widen:
        low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(index * step for index in range(first, last + 1)))


def log_scale(low: float, high: float) -> Scale:
    """A logarithmic scale with ticks at 1, 2 and 5, or powers of ten alone where there are many."""
    low, high = low / 1.1, high * 1.1
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = tuple(factor * 10.0**decade for decade in decades for factor in factors)
    inside = tuple(tick for tick in ticks if low <= tick <= high)
    return Scale(low, high, inside or (math.sqrt(low * high),), logarithmic=True)


def tick_format(scale: Scale) -> Callable[[float], str]:
    """Writes values with the digits that tell the ticks apart."""
    if scale.logarithmic or len(scale.ticks) < 2:
        return lambda value: f"{value:.3g}"
    step = min(b - a for a, b in pairwise(scale.ticks))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return (lambda value: f"{value:.1e}") if digits > 4 else (lambda value: f"{value:,.{digits}f}")


def _cleaned(series: Series, logarithmic: bool) -> Series:
    points = [(x, y if not logarithmic or y > 0 else math.nan) for x, y in series.points]
    return Series(series.label, points, series.color, series.look)


def _svg(
    title: str,
    series: Sequence[Series],
    levels: Sequence[Level],
    marks: Sequence[Mark],
    x_scale: Scale,
    y_scale: Scale,
    write: Callable[[float], str],
) -> Fragment:
    def place(x: float, y: float) -> str:
        return f"{_SIDE * x_scale(x):.1f} {_SIDE * (1 - y_scale(y)):.1f}"

    def across(y: float) -> str:
        at = f"{_SIDE * (1 - y_scale(y)):.1f}"
        return f"M0 {at}H{_SIDE:.0f}"

    parts = [element("path", d="".join(across(tick) for tick in y_scale.ticks), class_="grid")]
    parts += [element("path", d=across(level.value), class_=f"level {level.color}") for level in levels]
    for mark in marks:
        at = f"{_SIDE * min(max(x_scale(mark.x), 0.0), 1.0):.1f}"
        tip = element("title", f"{mark.kind}: {mark.detail}")
        parts.append(element("g", tip, element("path", d=f"M{at} 0V{_SIDE:.0f}", class_=f"mark {mark.color}")))
    for one in series:
        finite = [point for point in one.points if math.isfinite(point[1])]
        if one.look == "dots" or len(finite) == 1:
            dots = "".join(f"M{place(x, y)}h0" for x, y in finite)
            parts.append(element("path", d=dots, class_=f"dot {one.color}"))
        if len(finite) > 1:
            parts.append(element("path", d=_path(one.points, place), class_=f"curve {one.look} {one.color}"))
    return element(
        "svg",
        *parts,
        viewBox="0 0 1000 1000",
        preserveAspectRatio="none",
        role="img",
        aria_label=_in_words(title, series, write),
    )


def _path(points: Sequence[Point], place: Callable[[float, float], str]) -> str:
    """A path that breaks where values are missing."""
    parts, pen_down = [], False
    for x, y in points:
        if math.isfinite(y):
            parts.append(f"{'L' if pen_down else 'M'}{place(x, y)}")
        pen_down = math.isfinite(y)
    return "".join(parts)


def _in_words(title: str, series: Sequence[Series], write: Callable[[float], str]) -> str:
    """The chart for those who do not see it."""
    told = []
    for one in series:
        finite = [point for point in one.points if math.isfinite(point[1])]
        if finite and one.look != "faint":
            (first_x, first_y), (last_x, last_y) = finite[0], finite[-1]
            told.append(f"{one.label} from {write(first_y)} at {first_x:g} to {write(last_y)} at {last_x:g}")
    return f"{title}: {'; '.join(told)}"


def _legend(series: Sequence[Series], marks: Sequence[Mark]) -> Fragment:
    items = [(one.label, f"swatch {one.look} {one.color}") for one in series if one.points]
    items += [
        (kind, f"swatch upright {color}") for kind, color in dict.fromkeys((mark.kind, mark.color) for mark in marks)
    ]
    return element(
        "ul", *(element("li", element("span", class_=look), label) for label, look in items), class_="legend"
    )


def _y_axis(scale: Scale, write: Callable[[float], str]) -> list[Fragment]:
    return [
        element("span", write(tick), class_="tick y", style=f"top:{100 * (1 - scale(tick)):.2f}%")
        for tick in scale.ticks
    ]


def _x_axis(scale: Scale, label: str) -> list[Fragment]:
    """Ticks below the plot; every second one is left out by the style where space is short."""
    ticks = [
        element("span", f"{tick:,.10g}", class_="tick x", style=f"left:{100 * scale(tick):.2f}%")
        for tick in scale.ticks
        if 0.0 <= scale(tick) <= 1.0
    ]
    return [element("div", *ticks, class_="x-ticks"), element("span", label, class_="x-label")]


def _level_labels(levels: Sequence[Level], series: Sequence[Series], scale: Scale) -> list[Fragment]:
    """Names of the levels, each at the end where the curves are farther away, moved apart where they would cover each other."""
    labels = []
    lowest = {"left": -_LABEL_GAP, "right": -_LABEL_GAP}
    for level in sorted(levels, key=lambda level: -level.value):
        side = _free_side(level, series)
        top = max(100 * (1 - scale(level.value)), lowest[side] + _LABEL_GAP)
        lowest[side] = top
        told = f"{level.label} {level.value:.2f}"
        labels.append(element("span", told, class_=f"level-label {side} {level.color}", style=f"top:{top:.2f}%"))
    return labels


def _free_side(level: Level, series: Sequence[Series]) -> Literal["left", "right"]:
    ends = {"left": math.inf, "right": math.inf}
    for one in series:
        values = [y for _, y in one.points if math.isfinite(y)]
        share = max(1, len(values) // 7)
        for side, part in (("left", values[:share]), ("right", values[-share:])):
            ends[side] = min([ends[side], *(abs(value - level.value) for value in part)])
    return "left" if ends["left"] > ends["right"] else "right"


def _data(series: Sequence[Series], x_scale: Scale, x_label: str) -> str:
    """What the script needs: the ends of the x-axis and the values."""
    curves = [
        {
            "label": one.label,
            "color": one.color,
            "x": [round(x, 6) for x, y in one.points if math.isfinite(y)],
            "y": [float(f"{y:.5g}") for _, y in one.points if math.isfinite(y)],
        }
        for one in series
        if one.look != "faint" and any(math.isfinite(y) for _, y in one.points)
    ]
    return json.dumps(
        {"low": x_scale.low, "high": x_scale.high, "unit": x_label, "curves": curves}, separators=(",", ":")
    )


def charts(figures: Sequence[Fragment]) -> Fragment:
    """Figures side by side, as many as fit."""
    return element("div", join(figures), class_="charts")


CHART_STYLE = """
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
.chart{padding:16px 20px 12px;min-width:0}
.chart+.charts{margin-top:16px}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;align-items:baseline;gap:4px 16px;margin-bottom:14px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 16px;color:var(--soft);font-size:13px}
.legend li{display:flex;align-items:center;gap:7px}
.swatch{width:16px;height:0;border-top:2px solid currentColor;border-radius:1px}
.swatch.faint{border-top-width:1px;opacity:.6}
.swatch.dots{width:8px;height:8px;border:0;border-radius:50%;background:currentColor}
.swatch.upright{width:0;height:13px;border-top:0;border-left:1.5px dashed currentColor}
.plot{position:relative;margin:6px 4px 40px var(--gutter)}
.plot.tall{height:clamp(240px,36vw,360px)}
.plot.small{height:clamp(170px,22vw,210px)}
.plot svg{display:block;width:100%;height:100%;overflow:visible}
.plot path{fill:none;vector-effect:non-scaling-stroke;stroke:currentColor}
.plot .grid{stroke:var(--grid);stroke-width:1}
.plot .level{stroke-width:1.25;stroke-dasharray:5 4}
.plot .mark{stroke-width:1.25;stroke-dasharray:3 3;pointer-events:stroke}
.plot .curve{stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.plot .curve.faint{stroke-width:1;opacity:.38}
.plot .curve.dots{stroke-width:1.5}
.plot .dot{stroke-width:7;stroke-linecap:round}
.blue{color:var(--blue)}.orange{color:var(--orange)}.green{color:var(--green)}
.purple{color:var(--purple)}.red{color:var(--red)}.faint{color:var(--faint)}
.curve.faint.blue,.swatch.faint.blue{color:var(--blue)}
.tick{position:absolute;color:var(--soft);font-size:12px;line-height:1;font-variant-numeric:tabular-nums;white-space:nowrap}
.tick.y{right:calc(100% + 8px);transform:translateY(-50%)}
.x-ticks{position:absolute;inset:100% 0 auto 0}
.tick.x{top:9px;transform:translateX(-50%)}
.x-label{position:absolute;right:0;top:calc(100% + 26px);color:var(--faint);font-size:12px;line-height:1}
.level-label{position:absolute;transform:translateY(calc(-100% - 2px));font-size:12px;line-height:1;
font-variant-numeric:tabular-nums}
.level-label.left{left:0}.level-label.right{right:0}
.tip{position:absolute;top:0;pointer-events:none;background:var(--panel);border:1px solid var(--line);border-radius:8px;
padding:7px 10px;font-size:12.5px;line-height:1.5;white-space:nowrap;box-shadow:0 4px 16px rgb(0 0 0/.12);z-index:1;
font-variant-numeric:tabular-nums}
.cross{position:absolute;top:0;bottom:0;width:1px;background:var(--faint);opacity:.55;pointer-events:none}
@media(max-width:560px){.chart{padding:14px 14px 10px}.tick.x:nth-child(even){display:none}}
"""

CHART_SCRIPT = """
for(const plot of document.querySelectorAll("[data-chart]")){
const {low,high,unit,curves}=JSON.parse(plot.dataset.chart),tip=plot.querySelector(".tip"),cross=document.createElement("div");
cross.className="cross";cross.hidden=true;plot.append(cross);
const line=(text,color)=>{const row=document.createElement("div");row.textContent=text;if(color)row.className=color;return row};
const nearest=(xs,x)=>{let a=0,b=xs.length-1;while(b-a>1){const m=(a+b)>>1;if(xs[m]<x)a=m;else b=m}return x-xs[a]<xs[b]-x?a:b};
const leave=()=>{tip.hidden=cross.hidden=true};
plot.addEventListener("pointermove",event=>{
const box=plot.getBoundingClientRect(),share=(event.clientX-box.left)/box.width;
if(share<0||share>1||!curves.length)return leave();
const at=curves[0].x[nearest(curves[0].x,low+share*(high-low))];
tip.replaceChildren(line(unit+" "+at.toLocaleString("en")),...curves.map(c=>{const i=nearest(c.x,at);
const value=c.y[i].toLocaleString("en",{maximumSignificantDigits:5});
return line(c.label+" "+value+(c.x[i]===at?"":" ("+unit+" "+c.x[i]+")"),c.color)}));
tip.hidden=cross.hidden=false;const left=(at-low)/(high-low)*box.width;cross.style.left=left+"px";
tip.style.left=Math.max(0,Math.min(left+12,box.width-tip.offsetWidth))+"px"});
plot.addEventListener("pointerleave",leave)}
"""
