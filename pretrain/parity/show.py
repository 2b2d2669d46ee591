"""What a person sees of parity: a bar while it runs, one table, and what is behind a bad verdict.

The table is plain text in aligned columns, so that a log can be read and searched; colours appear on a terminal alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from pretrain.parity.check import Proof
from pretrain.parity.verdict import BOUNDS, Quantity

_SHOWN: dict[Quantity, str] = {
    "loss": "loss",
    "grad_norm": "gradient norm",
    "gradients": "gradients",
    "parameters": "parameters",
}
"""Columns of the table; the other quantities are told where they fail."""


@contextmanager
def bar(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Gives a function that tells the next case; on a terminal alone."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
    with progress:
        task = progress.add_task("starting ranks", total=total, completed=-1)

        def next_case(text: str) -> None:
            progress.update(task, description=Text(text[:50]).plain, advance=1)

        yield next_case


def proofs_table(proofs: Sequence[Proof], width: int) -> Text:
    """Largest deviation of each quantity, under the tolerance it is held against.

    A layout that is longer than its column has a line of its own. `width` is the terminal's.
    """
    numbers = sum(max(len(name), 7) + 2 for name in _SHOWN.values()) + len("  ranks failed") + 7
    room = max(12, min(width - numbers, max(len(proof.case.text) for proof in proofs)))
    lines = [Text(_row("layout", list(_SHOWN.values()), "verdict", "s", room), "bold")]
    last: Mapping[Quantity, float] | None = None
    for proof in proofs:
        if proof.bounds != last and proof.verdict:
            precision = proof.case.config.train.precision
            label = "tolerance" if proof.bounds == BOUNDS else f"tolerance in {precision}"
            lines += _lines(label, [f"{proof.bounds[q]:.0e}" for q in _SHOWN], "", "", room, "dim")
            last = proof.bounds
        shown = [f"{proof.verdict[q].value:.1e}" for q in _SHOWN] if proof.verdict else ["-"] * len(_SHOWN)
        style = "green" if proof.passed else "bold red"
        lines += _lines(proof.case.text, shown, proof.word, f"{proof.seconds:.1f}", room, style)
    return Text("\n").join(lines)


def _lines(label: str, cells: Sequence[str], word: str, seconds: str, room: int, style: str) -> list[Text]:
    alone = [Text(label)] if len(label) > room else []
    row = Text(_row("" if alone else label, cells, word, seconds, room))
    row.stylize(style, 0 if style == "dim" else row.plain.rindex(word))
    return [*alone, row]


def _row(label: str, cells: Sequence[str], word: str, seconds: str, room: int) -> str:
    columns = [f"{cell:>{max(len(name), 7)}}" for name, cell in zip(_SHOWN.values(), cells, strict=True)]
    return ("  ".join([f"{label:{room}}", *columns, f"{word:12}"]) + f"{seconds:>5}").rstrip()


def tell_faults(console: Console, proofs: Sequence[Proof]) -> None:
    """What is behind each bad verdict: the quantity, the tensor or step, or the ranks' own story."""
    for proof in proofs:
        if proof.passed:
            continue
        console.print(Text(f"\n{proof.case.text}:", "bold"), soft_wrap=True)
        if proof.story:
            console.print(Text(_without_warnings(proof.story)), soft_wrap=True)
        for quantity in BOUNDS:
            if quantity in proof.failed:
                found = proof.verdict[quantity]
                told = f"  {quantity} {found.value:.1e}, tolerance {proof.bounds[quantity]:.0e}: {found.where}"
                console.print(Text(told), soft_wrap=True)
    if any(proof.verdict and not proof.clipped for proof in proofs):
        console.print("note: not every step was clipped; a smaller --set optimizer.clip_norm=... tries that too")


def _without_warnings(story: str) -> str:
    """The ranks' story without what libraries warn of."""
    lines = story.splitlines()
    warned = {n + more for n, line in enumerate(lines) if "Warning: " in line for more in (0, 1)}
    return "\n".join(line for n, line in enumerate(lines) if n not in warned)
