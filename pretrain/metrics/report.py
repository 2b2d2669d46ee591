"""The report of a run: one HTML page, made from the files of the run folder alone, at any time, also while the run goes on."""

import math
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pretrain.files import write_atomically
from pretrain.html import Fragment, Section, Tile, element, join, page, tiles
from pretrain.metrics.charts import CHART_SCRIPT, CHART_STYLE, Color, Level, Mark, Series, charts, line_chart, smoothed
from pretrain.metrics.console import duration, short
from pretrain.metrics.report_sections import SECTIONS_STYLE, config_tree, history, layout_drawing, samples
from pretrain.metrics.run_record import RunRecord, read_run

REPORT_FILE = "report.html"
SOURCE_LOSS = "train/loss/"
QUIET_EVENTS = frozenset({"start", "resume", "finish", "launch_ended", "checkpoint", "evaluation"})
"""Kinds of events that belong to every run: listed, but not marked on the curves (a restart is: where the attempt changes)."""


def write_report(run_dir: Path) -> Path:
    """Writes the run's report.html and returns its path.

    Raises:
        ConfigError: the folder is not that of a run.
        StorageError: a file is damaged, or the page cannot be written.
    """
    path = run_dir / REPORT_FILE
    write_atomically(path, render(read_run(run_dir)))
    return path


def render(run: RunRecord) -> str:
    """The page."""
    sections = [
        Section("Result", _tiles(run)),
        Section("Curves", _curves(run), "Steps run from left to right; point at a curve to read it."),
        Section("Samples", samples(run), "What the model writes."),
        Section(
            "Layout",
            layout_drawing(run),
            f"{run.config.parallel_layout.describe()}, ZeRO-{run.config.layout.zero_stage}",
        ),
        Section("Attempts and events", history(run), "Every launch of the run, and what happened beside the steps."),
        Section("Config", config_tree(run), "Resolved: every default is written out."),
    ]
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    return page(
        run.config.name,
        overline="Training run",
        lead=_lead(run),
        sections=[section for section in sections if section.body],
        footer=f"Made {made} from the files in {run.config.run_dir}.",
        style=CHART_STYLE + SECTIONS_STYLE,
        script=CHART_SCRIPT,
    )


def _lead(run: RunRecord) -> Fragment:
    model, train = run.config.model, run.config.train
    kind = "A decoder" if model.architecture == "decoder" else "An encoder-decoder"
    tokens = run.last("train/tokens")
    return join(
        [
            f"{kind} of ",
            element("strong", f"{short(run.num_parameters)} parameters"),
            f" after {run.last_step:,} of {train.steps:,} steps",
            "" if tokens is None else f" and {short(tokens)} tokens",
            f", trained in {train.precision} on {run.config.parallel_layout.world_size} "
            f"{train.device} rank{'s' if run.config.parallel_layout.world_size > 1 else ''}. ",
            _status(run),
        ]
    )


def _status(run: RunRecord) -> str:
    last = next((event for event in reversed(run.events) if event.get("kind") in ("start", "finish")), None)
    if last is None or last["kind"] == "start":
        return "It is running, or was killed."
    known = {0: "It is finished.", 75: "It was preempted and can go on.", 130: "It was interrupted and can go on."}
    return known.get(last.get("exit_code", 0), f"It ended with exit code {last.get('exit_code')}.")


def _tiles(run: RunRecord) -> Fragment:
    return tiles([*_quality_tiles(run), *_work_tiles(run)])


def _quality_tiles(run: RunRecord) -> list[Tile]:
    """How good the model is; what is not known is left out."""
    loss, train_loss, bigram = run.eval("eval/loss"), run.last("train/loss"), run.eval("eval/bigram_loss")
    found = []
    if loss is not None:
        found.append(Tile("Validation loss", f"{loss:.3f}", f"perplexity {math.exp(loss):,.1f}" if loss < 50 else ""))
    if train_loss is not None:
        found.append(Tile("Training loss", f"{train_loss:.3f}", "of the last step"))
    if loss is not None and run.config.model.vocab_size:
        uniform = math.log(run.config.model.vocab_size)
        found.append(Tile("Below uniform", f"{uniform - loss:.2f}", f"ln(vocabulary) is {uniform:.2f}", "nats"))
    if loss is not None and bigram is not None:
        side = "Below" if loss <= bigram else "Above"
        found.append(Tile(f"{side} bigram", f"{abs(bigram - loss):.2f}", "fitted on the same tokens", "nats"))
    if (bits := run.eval("eval/bits_per_byte")) is not None:
        found.append(Tile("Bits per byte", f"{bits:.3f}", "of held-out text"))
    if (score := run.eval("eval/chrf_beam") or run.eval("eval/chrf_greedy")) is not None:
        copied = run.eval("eval/chrf_copy")
        found.append(Tile("chrF", f"{score:.1f}", "" if copied is None else f"copying the source: {copied:.1f}"))
    own, mixed = run.eval("eval/pair_loss"), run.eval("eval/shuffled_source_loss")
    if own is not None and mixed is not None:
        found.append(Tile("Sources shuffled", f"{mixed - own:+.2f}", "on the validation loss", "nats"))
    return found


def _work_tiles(run: RunRecord) -> list[Tile]:
    """What it took."""
    found = []
    if (tokens := run.last("train/tokens")) is not None:
        found.append(Tile("Tokens", short(tokens), f"{run.last('train/epoch') or 0:.2f} epochs"))
    times = [seconds for _, seconds in run.points("perf/step_time_s")]
    if times:
        found.append(Tile("Time in steps", duration(sum(times)), f"{sum(times) / len(times):.2f} s a step"))
    rates = sorted(rate for _, rate in run.points("perf/tokens_per_second") if math.isfinite(rate))
    if rates:
        mfu = run.last("perf/mfu")
        note = "median" if mfu is None else f"median; MFU {100 * mfu:.1f} %"
        found.append(Tile("Tokens per second", short(rates[len(rates) // 2]), note))
    found.append(Tile("Parameters", short(run.num_parameters), f"{run.num_parameters:,}"))
    return found


def _curves(run: RunRecord) -> Fragment:
    marks = _marks(run)
    loss = run.points("train/loss")
    levels = []
    if run.config.model.vocab_size:
        levels.append(Level("uniform", math.log(run.config.model.vocab_size)))
    bigram = run.eval("eval/bigram_loss")
    if bigram is not None:
        levels.append(Level("bigram", bigram, "green"))
    validation = run.points("eval/loss")
    if not validation and run.evaluation is not None:
        validation = [(run.evaluation.step, run.evaluation.values["eval/loss"])]
    series = [
        Series("each step", loss, "blue", "faint"),
        Series("training", smoothed(loss, max(2, len(loss) // 50)), "blue"),
        Series("validation", validation, "orange", "dots"),
    ]
    main = line_chart("Loss (nats per token)", series, levels=levels, marks=marks, size="tall")
    norms = run.points("train/grad_norm")
    small = [
        line_chart("Gradient norm", [Series("norm", norms, "purple")], marks=marks, logarithmic=_spreads(norms)),
        line_chart(
            "Learning rate", [Series("rate", run.points("train/lr"), "green")], marks=marks, form="{:.1e}".format
        ),
        line_chart(
            "Tokens per second", [Series("rate", run.points("perf/tokens_per_second"), "blue")], marks=marks, form=short
        ),
        _loss_by_position(run),
        _loss_by_source(run),
    ]
    return join([main, charts([figure for figure in small if figure])]) if main or any(small) else Fragment("")


def _spreads(points: Sequence[tuple[float, float]]) -> bool:
    """Whether values lie so far apart that a linear axis would flatten most of them."""
    values = sorted(value for _, value in points if value > 0 and math.isfinite(value))
    return len(values) > 2 and values[-1] > 20 * values[len(values) // 2]


def _loss_by_source(run: RunRecord) -> Fragment:
    names = sorted({name for row in run.rows for name in row if name.startswith(SOURCE_LOSS)})
    colors: tuple[Color, ...] = ("blue", "orange", "green", "purple", "red", "faint")
    curves = []
    for name, color in zip(names, colors, strict=False):
        points = run.points(name)
        curves.append(Series(name.removeprefix(SOURCE_LOSS), smoothed(points, max(2, len(points) // 50)), color))
    cut = f" (the first {len(colors)} of {len(names)}; metrics.jsonl has all)" if len(names) > len(colors) else ""
    return line_chart(f"Training loss by source{cut}", curves)


def _loss_by_position(run: RunRecord) -> Fragment:
    if run.evaluation is None:
        return Fragment("")
    points = [(float(position), loss) for position, loss in enumerate(run.evaluation.loss_by_position)]
    curve = Series("each position", points, "orange", "faint")
    smooth = Series("mean", smoothed(points, max(2, len(points) // 50)), "orange")
    return line_chart("Validation loss by position", [curve, smooth], x_label="position in the sequence")


def _marks(run: RunRecord) -> list[Mark]:
    """Restarts, where the attempt changes, and the events that concern single steps."""
    found = []
    for before, after in pairwise(run.rows):
        if after["attempt"] != before["attempt"]:
            detail = f"attempt {after['attempt']:.0f} from step {after['step']:.0f}"
            found.append(Mark(after["step"], "restart", detail, "purple"))
    for event in run.events:
        kind, step = event.get("kind", ""), event.get("step")
        if kind not in QUIET_EVENTS and isinstance(step, int | float):
            found.append(Mark(float(step), kind.replace("_", " "), f"step {step:.0f}", "red"))
    return found
