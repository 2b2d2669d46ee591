"""chrF against sacrebleu 2.6's corpus scores (CHRF(), the default chrF2), which were computed once and are written here."""

import pytest

from pretrain.metrics.chrf import chrf

TRANSLATIONS = ["Die Datei öffnen", "Der Vorgang wurde abgebrochen.", "x", "", "Speichern unter ...", "ab"]
REFERENCES = ["Datei öffnen", "Vorgang abgebrochen.", "Ja", "Nein", "Speichern als…", "abc"]


def test_a_corpus_has_the_score_of_sacrebleu() -> None:
    assert chrf(TRANSLATIONS, REFERENCES) == pytest.approx(70.90904070838988, rel=1e-12)


def test_references_shorter_than_an_ngram_count_as_sacrebleu_counts_them() -> None:
    translations, references = [" acd    c cd", "dbc", " a", " cdé dbca"], ["a éc dac cd", "bd   dca d", "", "é"]
    assert chrf(translations, references) == pytest.approx(19.14618945868946, rel=1e-12)


def test_the_same_text_scores_100_and_nothing_in_common_0() -> None:
    assert chrf(["gleich"], ["gleich"]) == pytest.approx(100)
    assert chrf(["abc"], ["xyz"]) == 0
    assert chrf([""], [""]) == 0


def test_white_space_does_not_count() -> None:
    assert chrf(["ein Wort"], ["einWort"]) == pytest.approx(100)
