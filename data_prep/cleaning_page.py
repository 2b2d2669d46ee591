"""cleaning.html of a data folder: what was read and left out, by source, step and rule, with examples.

The steps of the cleaning chain have sections of their own (`data_prep.cleaning.report`); here are those of the rest: reading,
equal documents, near-duplicates, eval files. The page depends on the corpus and the settings alone, not on who did the work.
"""

from collections.abc import Iterator, Mapping
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
    write_report(folder / CLEANING_NAME, total.tally, list(_sections(counts, total, survey)))


def _sections(counts: Mapping[str, Counts], total: Counts, survey: Survey | None) -> Iterator[Section]:
    yield _sources(counts, survey)
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


def _sources(counts: Mapping[str, Counts], survey: Survey | None) -> Section:
    rows: list[list[Content]] = []
    for name, part in counts.items():
        equal = survey.duplicates[name] if survey else 0
        near = survey.near_duplicates.get(name, 0) if survey else 0
        kept = part.passed - equal - near
        shown = (part.documents, part.bad_documents, part.documents - part.passed, equal, near, kept)
        rows.append([name, *(f"{count:,}" for count in shown)])
    headings = ["source", "documents read", "bad", "cleaned away", "equal", "near-duplicates", "kept"]
    reasons = sorted(Counts.sum(counts.values()).dropped.items(), key=lambda reason: (-reason[1], reason[0]))
    why = (
        table(["reason", "documents"], [[reason, f"{count:,}"] for reason, count in reasons], [1]) if reasons else None
    )
    body = join([table(headings, rows, range(1, len(headings))), element("div", why, class_="rules") if why else None])
    return Section("Sources", body, "Bad: could not be read as a document.")


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
