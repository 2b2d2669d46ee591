"""cleaning.html of a data folder: what was read and left out, by source, step and rule, with examples.

The steps of the cleaning chain have sections of their own (`data_prep.cleaning.report`); here are those of the rest: reading,
equal documents, near-duplicates, eval files. The page depends on the corpus and the settings alone, not on who did the work.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from data_prep.cleaning.report import write_report
from data_prep.counts import Counts
from data_prep.fates import NearDuplicates, Survey
from data_prep.folder import CLEANING_NAME, QUARANTINE_NAME
from data_prep.sieve import CONTAMINATED
from pretrain.html import Content, Section, Tile, code, element, fold, join, table, tiles


def write_cleaning_page(folder: Path, counts: Mapping[str, Counts], survey: Survey | None) -> None:
    """Writes the page.

    Args:
        folder: the data folder.
        counts: what was read, by source.
        survey: of the first pass; None: there was one pass, which looks for no duplicates.

    Raises StorageError.
    """
    total = Counts.sum(counts.values())
    fates = [_fates(name, part, survey) for name, part in counts.items()]
    read, kept = sum(row[0] for row in fates), sum(row[-1] for row in fates)
    write_report(
        folder / CLEANING_NAME,
        total.tally,
        list(_sections(total, survey)),
        first_sections=[_sources(dict(zip(counts, fates, strict=True)), total)],
        lead=join([element("strong", f"{kept:,} of {read:,} documents"), f" ({kept / max(read, 1):.1%}) are kept."]),
    )


def _sections(total: Counts, survey: Survey | None) -> Iterator[Section]:
    if survey is not None:
        yield Section(
            "Equal documents",
            tiles(
                [Tile("Left out", f"{sum(survey.duplicates.values()):,}", "for an equal one before them in the plan")]
            ),
        )
        if survey.twins is not None:
            yield _near_duplicates(survey.twins)
    if CONTAMINATED in total.dropped:
        yield _contaminated(total)
    if total.bad_documents:
        yield _bad(total)


FATES = ("read", "bad", "empty or unfit", "cleaned away", "eval text", "equal", "near-duplicates", "kept")
"""What becomes of the documents of a source: the first number is the sum of the others."""


def _fates(name: str, part: Counts, survey: Survey | None) -> tuple[int, ...]:
    eval_text = part.dropped.get(CONTAMINATED, 0)
    cleaned = part.documents - part.passed - eval_text
    unfit = sum(part.dropped.values()) - cleaned - eval_text
    equal = survey.duplicates[name] if survey else 0
    near = survey.near_duplicates.get(name, 0) if survey else 0
    read = part.documents + part.bad_documents + unfit
    return (read, part.bad_documents, unfit, cleaned, eval_text, equal, near, part.passed - equal - near)


def _sources(fates: Mapping[str, Sequence[int]], total: Counts) -> Section:
    rows: list[list[Content]] = [[name, *(f"{count:,}" for count in counts)] for name, counts in fates.items()]
    headings = ["source", *FATES]
    reasons = sorted(total.dropped.items(), key=lambda reason: (-reason[1], reason[0]))
    why = (
        table(["reason", "documents"], [[reason, f"{count:,}"] for reason, count in reasons], [1]) if reasons else None
    )
    body = join([table(headings, rows, range(1, len(headings))), element("div", why, class_="rules") if why else None])
    return Section(
        "Sources",
        body,
        "Bad: could not be read. Eval text: shares words with an eval file. The first number is the sum of the others.",
    )


def _near_duplicates(twins: NearDuplicates) -> Section:
    shown = [Tile(name.replace("_", " ").capitalize(), f"{count:,}") for name, count in twins.summary.items()]
    examples = [
        fold(
            f"similarity {example.similarity:.3f}",
            join([element("h3", "Left out"), code(example.dropped), element("h3", "Kept"), code(example.kept)]),
        )
        for example in twins.examples
    ]
    folded = fold("Examples, the least similar ones", join(examples)) if examples else None
    return Section(
        "Near-duplicates", join([tiles(shown), folded]), "Jaccard similarity of shingles; Lee et al. 2022, section 4.2"
    )


def _contaminated(total: Counts) -> Section:
    count = tiles([Tile("Left out", f"{total.dropped[CONTAMINATED]:,}", "for words that they share with an eval file")])
    examples = join([fold(example.why, code(example.text)) for example in total.contaminated])
    return Section("Eval files", join([count, examples]), "Brown et al. 2020, appendix C")


def _bad(total: Counts) -> Section:
    rows: list[list[Content]] = [[bad.file, f"{bad.line or ''}", bad.reason] for bad in total.bad]
    return Section(
        "Bad documents",
        table(["file", "line", "reason"], rows, [1]),
        f"The first of {total.bad_documents:,}; {QUARANTINE_NAME} lists them all.",
    )
