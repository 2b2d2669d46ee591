"""docs/layouts.md, generated from the rules: `python -m pretrain.parity.layout_table > docs/layouts.md`.

A test holds the file against this text, so a rule that is added or mended changes the documentation in the same commit.
"""

from collections.abc import Sequence

from pretrain.parity.features import FEATURES, Pair, all_pairs

_SIGNS = {"allowed": "+", "alternatives": "/"}
_HEAD = """# Layouts

<!-- Generated from the rules: python -m pretrain.parity.layout_table > docs/layouts.md -->

A layout is a line of a run's config. Whatever the table allows trains the same model as one process; `pretrain parity` proves it
on your own config, and `make test` runs every allowed pair at least once on tiny models (fp16 needs a GPU and is left out there).
Clipping, gradient accumulation over micro-batches, packed documents, padding, evaluation and checkpoints are in every layout.

The ranks of a run are pp x dp x ring x ulysses x tp; ep spreads experts over ranks of dp x ring x ulysses and adds none.
"""


def layouts_page() -> str:
    """The whole page."""
    pairs = all_pairs()
    parts = [
        _HEAD,
        "## Features",
        _features_table(),
        "## Pairs",
        _pairs_table(pairs),
        "## Refused pairs",
        _refusals(pairs),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _features_table() -> str:
    rows = ["| | feature | in the config |", "|---|---|---|"]
    for number, feature in enumerate(FEATURES, 1):
        fields = {**feature.needs, **feature.own} if feature.gpu else feature.own
        told = ", ".join(f"`{name}: {_shown(value)}`" for name, value in fields.items())
        rows.append(f"| {number} | {feature.name} | {told} |")
    return "\n".join(rows)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {each}" for key, each in value.items()) + "}"
    return str(value)


def _pairs_table(pairs: Sequence[Pair]) -> str:
    """A triangle: rows and columns are features by number."""
    numbers = {feature.name: number for number, feature in enumerate(FEATURES, 1)}
    status = {(numbers[pair.second.name], numbers[pair.first.name]): pair for pair in pairs}
    refused = [pair for pair in pairs if pair.status == "refused"]
    notes = {reason: note for note, reason in enumerate(dict.fromkeys(pair.reason for pair in refused), 1)}
    columns = range(1, len(FEATURES))
    lines = [
        "`+` allowed, a letter refused (see below), `/` two values of one setting.",
        "",
        "| | |" + "".join(f" {column} |" for column in columns),
        "|---|---|" + "---|" * len(columns),
    ]
    for feature in FEATURES[1:]:
        row = numbers[feature.name]
        cells = []
        for column in columns:
            pair = status.get((row, column))
            cells.append("" if pair is None else _SIGNS.get(pair.status) or letter(notes[pair.reason]))
        lines.append(f"| {row} | {feature.name} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join(lines)


def letter(number: int) -> str:
    """a, b, ..., z, aa, ab, ... for 1, 2, ..."""
    word = ""
    while number:
        number, rest = divmod(number - 1, 26)
        word = chr(ord("a") + rest) + word
    return word


def _refusals(pairs: Sequence[Pair]) -> str:
    """Each rule's sentence once, with the pairs that it refuses."""
    reasons: dict[str, list[str]] = {}
    for pair in pairs:
        if pair.status == "refused":
            reasons.setdefault(pair.reason, []).append(f"{pair.first.name} with {pair.second.name}")
    lines = []
    for note, (reason, refused) in enumerate(reasons.items(), 1):
        lines.append(f"- **{letter(note)}** {'; '.join(refused)}: {reason}.")
    return "\n".join(lines) or "None."


if __name__ == "__main__":
    print(layouts_page(), end="")
