"""The fast rules give what a slow reading of the papers gives, rule by rule, on real and on random documents."""

import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from data_prep.cleaning import fineweb, gopher
from data_prep.cleaning.batch import Batch
from data_prep.cleaning.c4 import C4
from data_prep.cleaning.rule import KEPT, Rule
from pretrain.data.cleaning_settings import (
    C4Settings,
    FineWebSettings,
    GopherQualitySettings,
    GopherRepetitionSettings,
)
from pretrain.settings import Settings
from tests.data_prep.cleaning import reference
from tests.data_prep.cleaning.texts import random_documents, real_documents

NEAR_QUALITY = GopherQualitySettings(
    min_words=60, max_words=150, min_mean_word_characters=3.2, max_mean_word_characters=3.8, max_bullet_lines=0.3
)
"""Limits that random documents lie on both sides of."""
NEAR_REPETITION = GopherRepetitionSettings(
    top_2gram_characters=0.05, top_3gram_characters=0.04, top_4gram_characters=0.03, duplicate_10gram_characters=0.01
)
CASES: list[tuple[tuple[Rule, ...], Callable[..., dict[str, Callable[[str], bool]]], Settings]] = [
    (gopher.QUALITY_RULES, reference.quality, GopherQualitySettings()),
    (gopher.QUALITY_RULES, reference.quality, NEAR_QUALITY),
    (gopher.REPETITION_RULES, reference.repetition, GopherRepetitionSettings()),
    (gopher.REPETITION_RULES, reference.repetition, NEAR_REPETITION),
    (fineweb.RULES, reference.fineweb, FineWebSettings()),
    (fineweb.RULES, reference.fineweb, FineWebSettings(punctuated_lines=0.4, short_lines=0.3)),
]


@lru_cache(maxsize=1)
def documents() -> list[str]:
    return [*real_documents(), *random_documents(300), "", " \n\n ", "\u00a0", "word", "…", "a\x00b \x1f c"]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_every_rule_agrees_with_the_slow_reference(case: int) -> None:
    rules, expected, settings = CASES[case]
    batch = Batch(documents())
    slow = expected(settings)
    assert list(slow) == [rule.name for rule in rules]
    for rule in rules:
        assert rule.removes is not None
        got = rule.removes(batch, settings)
        for text, removed in zip(documents(), got.tolist(), strict=True):
            assert removed == slow[rule.name](text), (rule.name, text)


@pytest.mark.parametrize(
    "settings",
    [C4Settings(), C4Settings(line_endings="any", min_line_words=3, min_sentences=5, code_characters="")],
    ids=["published", "as FineWeb"],
)
def test_c4_agrees_with_the_slow_reference(settings: C4Settings) -> None:
    step = C4(settings)
    outcome = step.apply(Batch(documents()))
    for place, text in enumerate(documents()):
        rule, left = reference.c4(text, settings)
        verdict = outcome.removed[place]
        assert (None if verdict == KEPT else step.rules[verdict].name) == rule, text
        if rule is None:
            assert (outcome.edits[place].text if place in outcome.edits else text) == left


@pytest.mark.parametrize("wanted", [("The", "the", "of"), ("of the", "the"), ("c++", "of"), ("é", "OF", "word")])
def test_any_stop_words_are_found_as_their_expression_finds_them(wanted: tuple[str, ...]) -> None:
    texts = [*documents(), "a of the x", "the of the", " c++ of", "the  The", "É of", "(the) of.", "the_of of"]
    expression = re.compile(rf"\b(?:{'|'.join(map(re.escape, sorted(wanted)))})\b", re.IGNORECASE)
    for least in (1, 2, 3):
        limits = GopherQualitySettings(stop_words=wanted, min_stop_words=least)
        expected = [len({found.lower() for found in expression.findall(text)}) < least for text in texts]
        assert gopher.few_stop_words(Batch(texts), limits).tolist() == expected


def test_random_documents_lie_on_both_sides_of_most_rules() -> None:
    """Else agreement would say little."""
    batch = Batch(documents())
    for rules, _, settings in CASES:
        for rule in rules:
            assert rule.removes is not None
            share = float(np.mean(rule.removes(batch, settings)))
            if settings in (NEAR_QUALITY, NEAR_REPETITION):
                assert 0 < share < 1, rule.name


def test_words_characters_and_lines_are_those_of_the_text() -> None:
    batch = Batch(documents())
    for place, text in enumerate(documents()):
        assert batch.words_of(place) == reference.words(text)
        assert batch.lines[place] == len(reference.lines(text))
        assert batch.characters[place] == sum(map(len, reference.words(text)))
        first, end = batch.line_offset[place : place + 2]
        assert batch.line_characters[first:end].tolist() == list(map(len, reference.raw_lines(text)))
        assert [chr(code) for code in batch.last_characters()[first:end]] == [
            line[-1] for line in reference.raw_lines(text)
        ]


def test_words_of_any_length_have_equal_hashes_only_when_they_are_equal() -> None:
    words = ["x" * count for count in range(1, 200)] + ["x" * count + "y" for count in range(200)]
    batch = Batch([" ".join(words), " ".join(words)])
    hashes = batch._word_hash.tolist()
    assert hashes[: len(words)] == hashes[len(words) :]
    assert len(set(hashes)) == len(set(words))
