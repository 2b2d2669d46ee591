"""`pretrain data mix` and `trace`: the order of samples, shown. Arithmetic on the plan: nothing is trained or written."""

from argparse import Namespace

from rich.console import Console
from rich.table import Table

from pretrain.config import load_config
from pretrain.data.manifest import read_manifest
from pretrain.data.plan import Plan, build_plan, check_epochs


def mix(arguments: Namespace) -> None:
    """`pretrain data mix`."""
    config, console = load_config(arguments.config, arguments.overrides), Console(soft_wrap=True)
    manifest = read_manifest(config.data.folder)
    plan = build_plan(config.data, manifest, config.run.seed, {})
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
