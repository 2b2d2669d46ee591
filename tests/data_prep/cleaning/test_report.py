"""The page of a cleaning: everything counted is on it, hostile text is text, equal tallies are equal bytes."""

import json
from pathlib import Path

from data_prep.cleaning.chain import Chain
from data_prep.cleaning.report import RULES, TITLES, render, write_report
from data_prep.cleaning.tally import Tally
from pretrain.data.cleaning_settings import CleaningSettings
from pretrain.html import Fragment, Section
from tests.data_prep.cleaning.texts import PROSE, random_documents, real_documents
from tests.test_html import parsed

HOSTILE = "<script>alert('x')</script>\"& </pre><img src=x onerror=y>\x1b[31m\u202e\ud800"
SETTINGS = CleaningSettings.model_validate({step: {} for step in CleaningSettings.model_fields})


def tally_of(texts: list[str]) -> Tally:
    tally = Tally()
    Chain(SETTINGS).run_many(texts, tally)
    return tally


def test_every_step_and_every_rule_has_its_count_on_the_page() -> None:
    tally = tally_of([*real_documents(), *random_documents(40)])
    page = render(tally)
    parsed(page)
    for name, step in tally.steps.items():
        assert TITLES[name] in page
        assert f"{step.documents_in:,}" in page and f"{step.documents_out:,}" in page
        assert all(rule.name in page for rule in RULES[name])
    assert tuple(RULES) == tuple(TITLES) == tuple(CleaningSettings.model_fields)


def test_text_of_the_corpus_stays_text() -> None:
    page = render(
        tally_of([HOSTILE, f"{HOSTILE} {PROSE}", f"{PROSE}\n{HOSTILE}", f"{PROSE}\n{HOSTILE} is seen by a.b@c.org."])
    )
    assert "<script>alert" not in page and "<img" not in page
    assert "&lt;script&gt;" in page
    assert "\\u001b[31m\\u202e\\ud800" in page
    page.encode("utf-8")
    assert "script" not in parsed(page).seen


def test_equal_tallies_in_any_order_are_equal_bytes(tmp_path: Path) -> None:
    texts = [*real_documents(), *random_documents(40)]
    parts = [tally_of(texts[at : at + 20]) for at in range(0, len(texts), 20)]
    forward, backward = Tally(), Tally()
    for part in parts:
        forward.merge(part)
    for part in reversed(parts):
        backward.merge(part)
    for name, tally in (("a", forward), ("b", backward), ("c", Tally.from_dict(forward.to_dict()))):
        write_report(tmp_path / name, tally)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_sections_of_other_steps_follow_and_an_empty_chain_has_a_page() -> None:
    page = render(Tally(), [Section("Duplicates", Fragment("<p>two</p>"))])
    parsed(page)
    assert "No cleaning step was asked for" in page and "Duplicates" in page
    assert "0 of 0 documents" in render(tally_of([])) or "No cleaning step" in render(tally_of([]))


def test_steps_stand_in_their_order_also_when_a_ledger_sorted_them() -> None:
    tally = Tally()
    for name, came, went in (("language", 10, 5), ("gopher_quality", 5, 2)):
        step = tally.step(name)
        step.documents_in, step.documents_out, step.bytes_in, step.bytes_out = came, went, 100 * came, 100 * went
    kept = Tally.from_dict(json.loads(json.dumps(tally.to_dict(), sort_keys=True)))
    assert list(kept.steps) != list(tally.steps)
    assert render(kept) == render(tally) and "2 of 10 documents" in render(kept)
