"""Each rule has its source, its threshold, and examples on both sides of it."""

import random
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from data_prep.cleaning import fineweb, gopher
from data_prep.cleaning.batch import Batch
from data_prep.cleaning.c4 import LINE_RULES
from data_prep.cleaning.c4 import RULES as C4_RULES
from data_prep.cleaning.chain import Chain, Kept, Removed
from data_prep.cleaning.language import RULES as LANGUAGE_RULES
from data_prep.cleaning.language import identified, sample
from data_prep.cleaning.personal_data import RULES as PERSONAL_DATA_RULES
from data_prep.cleaning.personal_data import emails, public_ipv4_addresses
from data_prep.cleaning.rule import Rule
from data_prep.cleaning.tally import Tally
from pretrain.data.cleaning_settings import CleaningSettings
from tests.data_prep.cleaning.examples import CHAIN_EXAMPLES, DOCUMENT_EXAMPLES, EDIT_EXAMPLES, SENTENCES
from tests.data_prep.cleaning.texts import PROSE

RULES: dict[str, tuple[Rule, ...]] = {
    "language": LANGUAGE_RULES,
    "gopher_quality": gopher.QUALITY_RULES,
    "gopher_repetition": gopher.REPETITION_RULES,
    "c4": C4_RULES,
    "fineweb": fineweb.RULES,
    "personal_data": PERSONAL_DATA_RULES,
}
ALL = [(step, rule) for step, rules in RULES.items() for rule in rules]
SETTINGS = CleaningSettings.model_validate({step: {} for step in RULES})


def chain_of(step: str, **values: Any) -> Chain:
    return Chain(CleaningSettings.model_validate({step: values}))


@pytest.mark.parametrize(("step", "rule"), ALL, ids=[f"{step}-{rule.name}" for step, rule in ALL])
def test_every_rule_has_a_source_a_threshold_and_two_examples(step: str, rule: Rule) -> None:
    assert rule.source
    assert rule.thresholds or rule.name == "no_letters"
    fields = type(getattr(SETTINGS, step)).model_fields
    assert all(fields[name].description for name in rule.thresholds)
    found = [table for table in (DOCUMENT_EXAMPLES, CHAIN_EXAMPLES, EDIT_EXAMPLES) if (step, rule.name) in table]
    assert len(found) == 1


def test_every_heuristic_tells_its_paper_in_its_docstring() -> None:
    for module in (gopher.too_few_words, gopher.duplicate_ngram_characters, fineweb.short_lines):
        assert " et al. 20" in (module.__doc__ or "")
    for rules, author in (
        (gopher.QUALITY_RULES, "Rae"),
        (gopher.REPETITION_RULES, "Rae"),
        (fineweb.RULES, "Penedo"),
        (LINE_RULES, "Raffel"),
    ):
        for rule in rules:
            assert rule.source.startswith(f"{author} et al. 20")
            function = getattr(rule.removes, "func", rule.removes)
            assert f"{author} et al. 20" in str(function.__doc__)


@pytest.mark.parametrize(("step", "rule"), DOCUMENT_EXAMPLES)
def test_a_heuristic_removes_beyond_its_threshold_and_not_before(step: str, rule: str) -> None:
    function = next(one for one in RULES[step] if one.name == rule).removes
    assert function is not None
    assert function(Batch(DOCUMENT_EXAMPLES[step, rule]), getattr(SETTINGS, step)).tolist() == [True, False]


@pytest.mark.parametrize(("step", "rule"), CHAIN_EXAMPLES)
def test_a_rule_removes_its_example_and_keeps_the_other(step: str, rule: str, tmp_path: Path) -> None:
    values = {}
    if rule == "bad_words":
        (tmp_path / "words").write_text("darn\n\n")
        values["bad_words_path"] = str(tmp_path / "words")
    removed, kept = CHAIN_EXAMPLES[step, rule]
    assert chain_of(step, **values).run_many([removed, kept], Tally()) == [Removed(step, rule), Kept(kept)]


@pytest.mark.parametrize(("step", "rule"), EDIT_EXAMPLES)
def test_a_rule_edits_its_example_and_keeps_the_other(step: str, rule: str) -> None:
    values = {"phone_placeholder": "+1 555 0100"} if rule == "phone_number" else {}
    edited, kept = (f"{SENTENCES}\n{text}" for text in EDIT_EXAMPLES[step, rule])
    tally = Tally()
    first, second = chain_of(step, **values).run_many([edited, kept], tally)
    assert isinstance(first, Kept) and first.text != edited and first.text.startswith(SENTENCES)
    assert second == Kept(kept)
    assert list(tally.steps[step].rules) == [rule]
    assert tally.steps[step].documents_edited == 1


def test_the_score_of_a_language_is_a_threshold() -> None:
    _, score = identified(sample(PROSE, 100))
    chains = [chain_of("language", min_score=score + step, sample_characters=100) for step in (-1e-6, 1e-6)]
    results = [chain.run(PROSE, Tally()) for chain in chains]
    assert results == [Kept(PROSE), Removed("language", "uncertain_language")]


def test_markup_does_not_make_prose_uncertain() -> None:
    marked = " ".join(f"**{word}** [[12]] ||" for word in PROSE.split())
    assert identified(marked[:300])[1] < 0.65
    assert chain_of("language").run(marked, Tally()) == Kept(marked)


def test_capitals_do_not_hide_a_language() -> None:
    assert chain_of("language", min_score=0.4).run(PROSE.upper(), Tally()) == Kept(PROSE.upper())


def test_a_heading_in_another_language_does_not_decide() -> None:
    assert identified(sample("Über den Hafen der Stadt\n" + PROSE, 300))[0] == "en"


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "Der Hafen liegt nördlich der Altstadt, und die Boote sind auf See."),
        ("ja", "港は旧市街の北にあります。"),
        ("ru", "Гавань находится к северу от старого города."),
        ("hi", "बंदरगाह पुराने शहर के उत्तर में है।"),
        ("th", "ท่าเรืออยู่ทางเหนือของเมืองเก่า"),
        ("ar", "يقع الميناء شمال المدينة القديمة."),
    ],
)
def test_languages_of_many_scripts_are_known_offline(language: str, text: str) -> None:
    assert chain_of("language", languages=[language]).run(text, Tally()) == Kept(text)
    assert chain_of("language").run(text, Tally()) == Removed("language", "other_language")


def test_each_placeholder_is_put_and_what_was_there_is_gone() -> None:
    chain = chain_of("personal_data", phone_placeholder="PHONE")
    result = chain.run(
        "a.b@c-d.org, <x_y@z.museum>; 8.8.8.8:53 +1-212-555-0123 10.1.2.3 v1.2.3.4.5 me@host x@@y.org 1.1.1.1.1 a@b.c",
        Tally(),
    )
    assert result == Kept(
        "email@example.com, <email@example.com>; 192.0.2.1:53 PHONE 10.1.2.3 v1.2.3.4.5 me@host x@@y.org 1.1.1.1.1 a@b.c"
    )


def test_masks_find_what_one_expression_over_the_whole_text_finds() -> None:
    """They look around signs alone, for speed."""
    email = r"(?<![\w.%+\-])[\w.%+\-]{1,64}@(?:[a-z0-9\-]{1,63}\.){1,8}[a-z]{2,24}(?![a-z0-9])"
    address = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"
    draw = random.Random(3)
    for _ in range(3000):
        text = "".join(
            draw.choice(["a", "b.", "c", "@", ".", "-", " ", "org", "1", "8.", "44", "8.8.", "9"]) for _ in range(30)
        )
        assert list(emails(text)) == [match.span() for match in re.finditer(email, text, re.ASCII)], text
        expected = [match.span() for match in re.finditer(address, text) if is_global(match.group())]
        assert list(public_ipv4_addresses(text)) == expected, text


def is_global(address: str) -> bool:
    return (
        all(int(part) < 256 and part == str(int(part)) for part in address.split(".")) and ip_address(address).is_global
    )


def test_a_mask_that_is_null_lets_its_data_be() -> None:
    text = "a.b@c-d.org 8.8.8.8"
    chain = chain_of("personal_data", email_placeholder=None, ip_placeholder=None)
    assert chain.run(text, Tally()) == Kept(text)


def test_masking_twice_changes_nothing() -> None:
    chain, tally = chain_of("personal_data"), Tally()
    once = chain.edited("Write to a.b@c-d.org from 8.8.8.8.")
    assert chain.run(once, tally) == Kept(once)
    assert tally.steps["personal_data"].documents_edited == 0


def test_hostile_text_does_not_make_masks_slow() -> None:
    chain = chain_of("personal_data", phone_placeholder="PHONE")
    for text in (
        "a" * 200_000 + "@",
        "a." * 100_000 + "@b",
        "1." * 100_000,
        "@a." * 60_000,
        "+1 " * 60_000,
        "1-" * 99_999,
    ):
        chain.run(text, Tally())


def test_only_what_loses_a_line_changes_at_all() -> None:
    text = f"  {SENTENCES}\n\n\n\n\t{SENTENCES}  \n\n"
    chain = chain_of("c4")
    assert chain.run(text, Tally()) == Kept(text)
    assert chain.run(f"Menu\n\n{text}\n\nHome | Contact\n", Tally()) == Kept(f"  {SENTENCES}\n\n\t{SENTENCES}  ")
