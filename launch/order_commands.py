"""`pretrain data mix` and `trace`: the order of samples, shown. Arithmetic on the plan: nothing is trained or written."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.commands import run_folder
from launch.data_commands import printable
from pretrain.checkpoint.format import RunState, latest_checkpoint, read_marker, read_metadata
from pretrain.config import RunConfig, load_config, read_resolved
from pretrain.data.manifest import Manifest, read_manifest
from pretrain.data.plan import Plan, build_plan, check_epochs
from pretrain.data.plan_segments import PlanSegment, first_segment, segment_of
from pretrain.errors import ConfigError, DataError
from pretrain.order_rules import ORDER_RULES
from pretrain.rules import broken_rules, raise_all

if TYPE_CHECKING:
    from pretrain.data.feed import Feed
    from pretrain.data.trace import TracedSample

SHOWN_CHARACTERS = 240


def mix(arguments: Namespace) -> None:
    """`pretrain data mix`."""
    config, console = load_config(arguments.config, arguments.overrides), Console(soft_wrap=True)
    raise_all(ConfigError, broken_rules(ORDER_RULES, config))
    manifest = read_manifest(config.data.folder)
    plan = _plan(config, manifest)
    total = config.train.steps * config.global_batch_sequences
    order = config.data.order
    how = "shuffled whole" if plan.era is None else f"in eras of {plan.era:,} samples"
    state = "" if manifest.complete else "; the folder is still growing, epochs are of what is there"
    console.print(
        f"{config.name}: {config.train.steps:,} steps x {config.global_batch_sequences:,} sequences x "
        f"{config.data.sequence_length:,} tokens = {total * config.data.sequence_length:,} tokens, {how}{state}"
    )
    first = 0
    for number, stage in enumerate(plan.stages):
        last = total if stage.length is None else min(first + stage.length, total)
        if len(plan.stages) > 1:
            console.print(f"\nstage {number}: samples {first:,} to {last:,}")
        console.print(_stage_table(plan, first, last))
        first = last
    if order.stages and first < total:
        console.print(f"the stages end at sample {first:,} of {total:,}; give the last one tokens: null")
    for note in check_epochs(config.data, plan, total):
        console.print(f"note: {note}")


def _plan(config: RunConfig, manifest: Manifest) -> Plan:
    """The plan of a config. How many rows pairs make is known when they are read; of windows the manifest tells it."""
    if config.data.objective == "causal":
        return build_plan(config.data, manifest, config.run.seed, {})
    from pretrain.data.feed import Feed

    return Feed(config.data, config.run.seed).plan


def _stage_table(plan: Plan, first: int, last: int) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("source")
    for name in ("has samples", "gives samples", "share", "tokens", "epochs at the end"):
        table.add_column(name, justify="right")
    before, after = plan.counts(first), plan.counts(last)
    for source in plan.sources:
        given = after[source.name] - before[source.name]
        table.add_row(
            source.name,
            f"{source.samples:,}",
            f"{given:,}",
            f"{given / max(last - first, 1):.2%}",
            f"{given * plan.sequence_length:,}",
            f"{after[source.name] / source.samples:.2f}" if source.samples else "",
        )
    return table


def trace(arguments: Namespace) -> None:
    """`pretrain data trace`."""
    run_dir, step = run_folder(arguments.run), arguments.step
    config = read_resolved(run_dir)
    if step > config.train.steps:
        raise ConfigError(f"--step {step}: the run has {config.train.steps:,} steps (train.steps)")
    from pretrain.data.trace import trace_samples

    state = _state(run_dir)
    feed, segment = _segment(config, state, step)
    samples = list(trace_samples(feed, segment.sample(step - 1), segment.global_batch_sequences))
    if arguments.form == "json":
        for sample in samples:
            print(json.dumps(asdict(sample), ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    counts = Counter(sample.source for sample in samples)
    parts = ", ".join(f"{count:,} of {name}" for name, count in sorted(counts.items()))
    console.print(
        f"step {step:,} of {config.name}: samples {samples[0].sample:,} to {samples[-1].sample:,} ({parts}), "
        f"{sum(len(sample.documents) for sample in samples):,} documents or parts of them"
    )
    _show(samples[: arguments.rows], feed, arguments.form, console)
    if len(samples) > arguments.rows:
        console.print(f"and {len(samples) - arguments.rows:,} samples more: --rows {len(samples)}, or --form json")


def _state(run_dir: Path) -> RunState | None:
    """Of the newest checkpoint; None for a run that has none. Raises CheckpointError where it cannot be read."""
    newest = latest_checkpoint(run_dir)
    return None if newest is None else read_metadata(newest, read_marker(newest)).state


def _segment(config: RunConfig, state: RunState | None, step: int) -> "tuple[Feed, PlanSegment]":
    """The segment of a step, and a feed in it; the data must be those that it read. Raises DataError where they are others."""
    from pretrain.data.feed import Feed

    if state is None or not state.segments:
        feed = Feed(config.data, config.run.seed)
        segments = (first_segment(feed.plan, config.global_batch_sequences),)
        segment = segments[0]
    else:
        segments, segment = state.segments, segment_of(state.segments, step - 1)
        length = segment.facts["sequence_length"]
        feed = Feed(config.data.model_copy(update={"sequence_length": length}), segment.facts["seed"])
    feed.recall(segment)
    if state is not None and segment is segments[-1]:
        same = feed.hash_at(state.next_sample) == state.plan_hash
    else:
        same = feed.hash_at(segment.first_sample) == segment.plan_hash
    if not same:
        at = f"from step {segment.first_step + 1:,} on" if len(segments) > 1 else "when it began"
        raise DataError(
            f"{config.data.dir}: its shards are not those that the run read {at}; "
            "put them back to trace a step of that time"
        )
    return feed, segment


def _show(samples: "Sequence[TracedSample]", feed: "Feed", form: str, console: Console) -> None:
    from pretrain.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(feed.streams[0].folder) if form == "text" else None
    places = {source.name: stream for source, stream in zip(feed.plan.sources, feed.streams, strict=True)}
    for sample in samples:
        console.print(
            f"\nsample {sample.sample:,}: {sample.source}, epoch {sample.epoch}, window {sample.window:,}",
            highlight=False,
        )
        for part in sample.documents:
            console.print(
                f"  {part.file}, document {part.number:,}, tokens {part.first_token:,} to {part.last_token:,} of {part.length:,}",
                style="dim",
                highlight=False,
            )
            if tokenizer is not None:
                ids = places[sample.source].read(part.start + part.first_token, part.start + part.last_token)
                text = printable(tokenizer.decode(ids.tolist()))
                cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …"
                console.print(Text("\n".join(f"  | {line}" for line in cut.splitlines())))
