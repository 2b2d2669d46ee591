"""The report of a cleaning: one HTML page, made from a tally alone; equal tallies give equal bytes.

Texts of the corpus are shown as text: the page's template escapes them, and its content policy lets nothing run or load. Examples
are folded, since they are arbitrary web text that a reader may not want to meet.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.cleaning import c4, fineweb, gopher, language, personal_data
from data_prep.cleaning.rule import Rule
from data_prep.cleaning.tally import RuleTally, StepTally, Tally
from pretrain.data.cleaning_settings import CleaningSettings
from pretrain.files import write_atomically
from pretrain.html import Content, Fragment, Section, Tile, bars, code, element, fold, join, page, table, tiles

RULES: dict[str, Sequence[Rule]] = {
    "language": language.RULES,
    "gopher_quality": gopher.QUALITY_RULES,
    "gopher_repetition": gopher.REPETITION_RULES,
    "c4": c4.RULES,
    "fineweb": fineweb.RULES,
    "personal_data": personal_data.RULES,
}
TITLES = {
    "language": "Language",
    "gopher_quality": "Gopher, quality",
    "gopher_repetition": "Gopher, repetition",
    "c4": "C4",
    "fineweb": "FineWeb",
    "personal_data": "Personal data",
}
EFFECTS = {"document": "removes the document", "line": "removes lines", "mask": "masks places"}
_STYLE = """
.rules{margin-top:14px}
.rules td:first-child{font-family:var(--mono);font-size:13px}
.idle{margin-top:10px;color:var(--soft);font-size:14px}
.examples{margin-top:14px}
.examples details details{background:none}
.examples details details summary{font-family:var(--mono);font-size:13px}
.examples pre{padding:10px 0;border-top:1px solid var(--grid)}
.examples pre:first-child{border-top:0}
.flow+.flow,.tiles+.flow{margin-top:14px}
.flow h3{margin-bottom:10px}
.flow .bars li{grid-template-columns:minmax(80px,240px) 1fr minmax(76px,140px)}
.flow .bar-value{text-align:right}
"""


def write_report(
    path: Path,
    tally: Tally,
    extra_sections: Sequence[Section] = (),
    *,
    first_sections: Sequence[Section] = (),
    lead: Content = None,
) -> None:
    """Writes the page.

    Args:
        path: of the page.
        tally: what the chain counted.
        extra_sections: of other steps of a preparation (duplicates, contamination), put after those of the chain.
        first_sections: put before them.
        lead: the sentence under the title; None: what the chain kept.

    Raises:
        StorageError: the page cannot be written.
    """
    write_atomically(path, render(tally, extra_sections, first_sections=first_sections, lead=lead))


def render(
    tally: Tally,
    extra_sections: Sequence[Section] = (),
    *,
    first_sections: Sequence[Section] = (),
    lead: Content = None,
) -> str:
    """The page."""
    # A ledger may have sorted them by name.
    steps = sorted(tally.steps.items(), key=lambda item: list(CleaningSettings.model_fields).index(item[0]))
    sections = (
        [Section("What went through", _flow(steps), "Documents and text after each step of the cleaning chain.")]
        if steps
        else []
    )
    sections += [_step(name, step) for name, step in steps]
    return page(
        "Cleaning",
        overline="Data preparation",
        lead=lead or _lead([step for _, step in steps]),
        sections=[*first_sections, *sections, *extra_sections],
        footer="Counts are of UTF-8 bytes. Examples are the texts with the smallest hashes, cut to 300 characters.",
        style=_STYLE,
    )


def _lead(steps: Sequence[StepTally]) -> Content:
    if not steps:
        return "No cleaning step was asked for."
    first, last = steps[0], steps[-1]
    return join(
        [
            element("strong", f"{last.documents_out:,} of {first.documents_in:,} documents"),
            f" ({_share(last.documents_out, first.documents_in)}) and ",
            element("strong", f"{_size(last.bytes_out)} of {_size(first.bytes_in)}"),
            f" of text ({_share(last.bytes_out, first.bytes_in)}) are kept.",
        ]
    )


def _flow(steps: Sequence[tuple[str, StepTally]]) -> Fragment:
    first = steps[0][1]
    documents = [("read", float(first.documents_in), f"{first.documents_in:,}")]
    text = [("read", float(first.bytes_in), _size(first.bytes_in))]
    for name, step in steps:
        title = TITLES.get(name, name)
        told = f"{step.documents_out:,} ({_share(step.documents_out, first.documents_in)})"
        documents.append((title, float(step.documents_out), told))
        told = f"{_size(step.bytes_out)} ({_share(step.bytes_out, first.bytes_in)})"
        text.append((title, float(step.bytes_out), told))
    plots = (("Documents", documents), ("Text", text))
    return join(element("div", element("h3", title), bars(rows), class_="flow panel") for title, rows in plots)


def _step(name: str, step: StepTally) -> Section:
    known = list(RULES.get(name, ()))
    known += [Rule(rule, "", ()) for rule in sorted(step.rules) if rule not in {one.name for one in known}]
    busy = sorted(
        (rule for rule in known if rule.name in step.rules), key=lambda rule: -step.rules[rule.name].documents
    )
    idle = [rule.name for rule in known if rule.name not in step.rules]
    body = [_step_tiles(step, known), _step_bars(busy, step), _step_table(busy, step) if busy else None]
    if idle:
        told = (
            f"Met by no document: {', '.join(idle)}."
            if busy
            else f"No document met any of {len(idle)} rules: {', '.join(idle)}."
        )
        body.append(element("p", told, class_="idle"))
    if busy:
        folded = (
            fold(f"{rule.name}: {_examples_told(step.rules[rule.name])}", _examples(step.rules[rule.name]))
            for rule in busy
        )
        body.append(element("div", fold("Examples", join(folded)), class_="examples"))
    sources = dict.fromkeys(rule.source for rule in known if rule.source and rule.thresholds)
    return Section(TITLES.get(name, name), join(body), "; ".join(sources))


def _step_tiles(step: StepTally, rules: Sequence[Rule]) -> Fragment:
    gone = step.documents_in - step.documents_out
    shown = [Tile("Came in", f"{step.documents_in:,}", _size(step.bytes_in))]
    if any(rule.effect == "document" for rule in rules):
        shown.append(Tile("Removed", f"{gone:,}", f"{_share(gone, step.documents_in)} of what came in"))
    if any(rule.effect != "document" for rule in rules):
        edited = step.documents_edited
        shown.append(Tile("Edited", f"{edited:,}", f"{_share(edited, step.documents_in)} of what came in"))
    shown.append(Tile("Went out", f"{step.documents_out:,}", _size(step.bytes_out)))
    return tiles(shown)


def _step_table(rules: Sequence[Rule], step: StepTally) -> Fragment:
    """Rules that acted, the most frequent first."""
    edits = any(rule.effect != "document" for rule in rules)
    headings = ["rule", "documents", "share of step", "text that went", *(["places"] if edits else []), "what it does"]
    rows: list[list[Content]] = []
    for rule in rules:
        told = step.rules[rule.name]
        places = [f"{told.places:,}" if rule.effect != "document" else ""] if edits else []
        share = _share(told.documents, step.documents_in)
        rows.append([rule.name, f"{told.documents:,}", share, _size(told.bytes), *places, EFFECTS[rule.effect]])
    return element("div", table(headings, rows, range(1, len(headings) - 1)), class_="rules")


def _step_bars(rules: Sequence[Rule], step: StepTally) -> Content:
    """Documents that each rule removed or edited; where one rule acted, the table says as much."""
    if len(rules) < 2:
        return None
    counted = [(rule.name, step.rules[rule.name].documents) for rule in rules]
    shown = bars([(name, float(count), f"{count:,} ({_share(count, step.documents_in)})") for name, count in counted])
    return element("div", element("h3", "Documents by rule"), shown, class_="flow panel")


def _examples_told(rule: RuleTally) -> str:
    return f"{len(rule.examples)} example{'s' if len(rule.examples) > 1 else ''}"


def _examples(rule: RuleTally) -> Fragment:
    return join(code(_shown(example.text)) for example in rule.examples)


def _shown(text: str) -> str:
    """Text of which control characters and single surrogates are made visible, so that the page is valid UTF-8."""
    return "".join(
        letter
        if letter in "\n\t" or (letter.isprintable() and not 0xD800 <= ord(letter) < 0xE000)
        else f"\\u{ord(letter):04x}"
        for letter in text
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _size(count: int) -> str:
    """Bytes, in decimal units."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count} B"
