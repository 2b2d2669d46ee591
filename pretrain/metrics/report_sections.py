"""The parts of a run's report below the curves: samples, layout, attempts and events, config."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from pretrain.html import Content, Fragment, code, element, fold, join, table
from pretrain.metrics.console import Batch, describe_layers, plural
from pretrain.metrics.facts import redact
from pretrain.metrics.run_record import RunRecord
from pretrain.parallel.layout import ParallelLayout

MAX_RANKS_DRAWN = 128
MAX_SAMPLES = 12
MAX_EVENTS = 200
FEW_RANKS = 16
"""Up to so many, a rank is spelled out in the drawing."""


def samples(run: RunRecord) -> Fragment:
    """What the model wrote at the last step that has samples."""
    if not run.samples:
        return Fragment("")
    newest = max(sample.get("step", 0) for sample in run.samples)
    shown = [sample for sample in run.samples if sample.get("step", 0) == newest][-MAX_SAMPLES:]
    return element("div", *(_sample(sample) for sample in shown), class_="samples")


def _sample(sample: Mapping[str, Any]) -> Fragment:
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sample.get("settings", {}).items())
    note = element("p", f"step {sample.get('step', 0):,}{', ' if settings else ''}{settings}", class_="sample-note")
    prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
    if "reference" in sample or sample.get("kind") == "translation":
        lines = [("source", prompt), ("model", text)]
        lines += [("reference", str(sample["reference"]))] if sample.get("reference") else []
        parts = [join([element("dt", label), element("dd", told)]) for label, told in lines]
        return element("article", element("dl", *parts), note, class_="panel translation")
    written = element("pre", element("b", prompt), text)
    return element("article", written, note, class_="panel")


def layout_drawing(run: RunRecord) -> Fragment:
    """The grid of ranks and the arithmetic of the batch."""
    layout, config = run.config.parallel_layout, run.config
    facts = next(
        (event["facts"] for event in reversed(run.events) if event.get("kind") == "start" and "facts" in event), {}
    )
    stages = facts.get("stages") or [[]] * layout.pp
    batch = Batch(
        config.data.sequence_length, config.train.micro_batch_sequences, config.global_batch_sequences, layout.dp
    )
    factors: list[Content] = []
    for value, name in (
        (layout.dp, "data rank"),
        (batch.micro_batches, "micro-batch"),
        (batch.micro_batch_sequences, "sequence"),
        (batch.sequence_length, "token"),
    ):
        factors += [_factor(value, name), element("span", "\u00d7", class_="sign")]
    factors[-1] = element("span", "=", class_="sign")
    product = element("span", element("b", f"{batch.tokens:,}"), "tokens a step", class_="factor")
    equation = element("div", *factors, product, class_="equation panel")
    return join([_grid(layout, stages), equation])


def _factor(value: int, name: str) -> Fragment:
    return element("span", element("b", f"{value:,}"), plural(value, name), class_="factor")


def _grid(layout: ParallelLayout, stages: Sequence[Sequence[str]]) -> Fragment:
    """Stages from top to bottom; in each, a box for every data coordinate with its tensor ranks."""
    drawn = layout.data_size
    if layout.world_size > MAX_RANKS_DRAWN:
        drawn = min(drawn, max(1, MAX_RANKS_DRAWN // (layout.pp * layout.tp)))
    rows = []
    for pipe in range(layout.pp):
        layers = describe_layers(stages[pipe]) if pipe < len(stages) else ""
        boxes: list[Content] = [_tensor_group(layout, pipe, data) for data in range(drawn)]
        if drawn < layout.data_size:
            boxes.append(element("span", f"… and {layout.data_size - drawn:,} more", class_="more"))
        label = element("div", element("h3", f"Stage {pipe}"), element("p", layers), class_="stage-label")
        rows.append(element("div", label, element("div", *boxes, class_="boxes"), class_="stage"))
    key = element("p", "A box is a tensor group, one for each data coordinate; the numbers are ranks.", class_="key")
    return element("div", *rows, key, class_="panel layout")


def _tensor_group(layout: ParallelLayout, pipe: int, data: int) -> Fragment:
    word = "rank " if layout.world_size <= FEW_RANKS else ""
    shown = range(min(layout.tp, MAX_RANKS_DRAWN))
    ranks = [element("span", f"{word}{layout.rank(pipe, data, model)}", class_="rank") for model in shown]
    title = f"stage {pipe}, data {data}: ranks {layout.rank(pipe, data, 0)} to {layout.rank(pipe, data, layout.tp - 1)}"
    return element("div", *ranks, class_="group", title=title)


def history(run: RunRecord) -> Fragment:
    """Launches and events."""
    if not run.attempts and not run.events:
        return Fragment("")
    headings = ["attempt", "started", "steps", "hosts", "layout", "code", "end"]
    parts: list[Content] = []
    if run.attempts:
        parts.append(table(headings, [_attempt(run, attempt) for attempt in run.attempts], numeric=[0]))
    told = [event for event in run.events if event.get("kind") not in ("start", "finish")]
    if told:
        rows = [_event(event) for event in told[-MAX_EVENTS:]]
        listed = table(["time", "attempt", "step", "event", "detail"], rows, numeric=[1, 2])
        parts.append(element("div", fold(f"{len(told):,} events", listed), class_="events"))
    return join(parts)


def _attempt(run: RunRecord, attempt: Mapping[str, Any]) -> list[Content]:
    number = attempt.get("attempt", attempt.get("generation", 0))
    steps = [row["step"] for row in run.rows if row["attempt"] == number]
    finish = next((e for e in run.events if e.get("kind") == "finish" and e.get("attempt") == number), None)
    git = attempt.get("git") or {}
    code_state = f"{git['commit'][:10]}{' (changed)' if git.get('dirty') else ''}" if git.get("commit") else ""
    layout = " ".join(f"{name}={size}" for name, size in (attempt.get("layout") or {}).items())
    return [
        str(number),
        _moment(attempt.get("time")),
        f"{steps[0]:,.0f} to {steps[-1]:,.0f}" if steps else "none that count",
        ", ".join(str(host) for host in attempt.get("hosts") or ()),
        layout,
        code_state,
        _end(finish, is_last=attempt is run.attempts[-1]),
    ]


def _end(finish: Mapping[str, Any] | None, *, is_last: bool) -> str:
    if finish is None:
        return "running or killed" if is_last else "killed"
    code = finish.get("exit_code", 0)
    return {0: "finished", 75: "preempted", 130: "interrupted"}.get(code, f"exit code {code}")


def _event(event: Mapping[str, Any]) -> list[Content]:
    rest = {key: value for key, value in event.items() if key not in ("kind", "attempt", "time", "step")}
    detail = ", ".join(f"{key.replace('_', ' ')}: {value}" for key, value in rest.items())
    step = event.get("step")
    return [
        _moment(event.get("time")),
        str(event.get("attempt", "")),
        "" if step is None else f"{step:,}",
        str(event.get("kind", "")).replace("_", " "),
        detail,
    ]


def _moment(seconds: float | None) -> str:
    return "" if not isinstance(seconds, int | float) else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def config_tree(run: RunRecord) -> Fragment:
    """The resolved config, a fold for each section."""
    tree = redact(run.config.model_dump(mode="json"))
    plain = {name: value for name, value in tree.items() if not isinstance(value, dict)}
    parts = [fold("run", code(_yaml({**plain, "run": tree["run"]})))]
    parts += [
        fold(name, code(_yaml(value))) for name, value in tree.items() if isinstance(value, dict) and name != "run"
    ]
    return join(parts)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100).rstrip()


SECTIONS_STYLE = """
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:16px}
.samples article{min-width:0;display:flex;flex-direction:column;justify-content:space-between}
.samples pre{max-height:460px;overflow-y:auto}
.samples b{color:var(--blue);font-weight:650}
.sample-note{color:var(--soft);font-size:13px;margin-top:14px}
.translation dt{color:var(--soft);font-size:13px}
.translation dd{margin-bottom:8px;overflow-wrap:anywhere}
.layout{display:grid;gap:14px}
.stage{display:grid;grid-template-columns:minmax(150px,300px) 1fr;gap:8px 24px;align-items:center}
.stage+.stage{border-top:1px solid var(--grid);padding-top:14px}
.stage-label p{color:var(--soft);font-size:13.5px;overflow-wrap:anywhere}
.boxes{display:flex;flex-wrap:wrap;gap:8px;align-items:center}
.group{display:flex;flex-wrap:wrap;gap:4px;padding:5px;border:1px solid var(--line);border-radius:9px;background:var(--shade)}
.rank{min-width:34px;padding:4px 6px;text-align:center;border-radius:6px;background:var(--panel);border:1px solid var(--line);
font-size:13px;font-variant-numeric:tabular-nums}
.key,.more{color:var(--soft);font-size:13px}
.equation{display:flex;flex-wrap:wrap;align-items:center;gap:8px 16px;margin-top:16px}
.factor{display:flex;flex-direction:column;font-size:13px;color:var(--soft);line-height:1.35}
.factor b{font-size:20px;font-weight:640;color:var(--ink);letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.sign{color:var(--faint);font-size:18px}
.events{margin-top:12px}
.events .scroll{border:0}
@media(max-width:560px){.stage{grid-template-columns:1fr}.panel{padding:14px 16px}}
"""
