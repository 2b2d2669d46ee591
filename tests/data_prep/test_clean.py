"""Cleaning: accelerators go, names stay, what is no pair is dropped with its reason."""

import pytest

from data_prep.clean import bad_text, clean_pair, clean_text, normalized

KEPT = [
    ("_Open File", "Datei ö_ffnen", "Open File", "Datei öffnen"),
    ("~Insert", "~Einfügen", "Insert", "Einfügen"),
    ("Open playlist...", "Wiedergabeliste &öffnen …", "Open playlist...", "Wiedergabeliste öffnen …"),
    ("_Save", "Speichern", "Save", "Speichern"),
    ("Character style:", "Ze_ichenvorlage:", "Character style:", "Zeichenvorlage:"),
    ("Plu&gins", "Erwe&iterungen", "Plu&gins", "Erwe&iterungen"),
    ("Black & White", "Schwarz & Weiß", "Black & White", "Schwarz & Weiß"),
    ("Tom &amp; Jerry here", "Hier Tom &amp; Jerry", "Tom &amp; Jerry here", "Hier Tom &amp; Jerry"),
    ("America/Cambridge_Bay", "Amerika/Cambridge_Bay", "America/Cambridge_Bay", "Amerika/Cambridge_Bay"),
    ("Set file_name to %s", "Setze file_name auf %s", "Set file_name to %s", "Setze file_name auf %s"),
    ("See ~/Pictures now", "Siehe ~/Bilder jetzt", "See ~/Pictures now", "Siehe ~/Bilder jetzt"),
    ("A_B and C_D keys", "Tasten A_B und C_D", "A_B and C_D keys", "Tasten A_B und C_D"),
    ("_Video codec", "_Video-Kodierung", "Video codec", "Video-Kodierung"),
    ("Two\n  lines", "Zwei\r\n Zeilen", "Two lines", "Zwei Zeilen"),
]


@pytest.mark.parametrize(("source", "target", "clean_source", "clean_target"), KEPT, ids=[row[0] for row in KEPT])
def test_markers_are_stripped_and_names_are_not(source: str, target: str, clean_source: str, clean_target: str) -> None:
    assert clean_pair(source, target, 300) == (clean_source, clean_target)


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("OK", "ok", "both sides identical"),
        ("_Status", "Status", "both sides identical"),
        ("Name:", "NAME", "both sides identical"),
        ("%%", "Prozent", "a side without letters"),
        ("12:30", "halb eins", "a side without letters"),
        ("word " * 70, "Wort", "a side that is too long"),
        ("Go", "Das ist ein sehr viel längerer Satz", "sides of very different length"),
    ],
)
def test_what_is_no_pair_is_dropped_with_its_reason(source: str, target: str, reason: str) -> None:
    assert clean_pair(source, target, 300) == reason


def test_normalisation_joins_what_differs_in_form_alone() -> None:
    forms = ["Save As…", "save as...", "  SAVE   AS:", "Save-As", "\uff33ave as"]
    assert len({normalized(form) for form in forms}) == 1
    assert normalized("Straße") == normalized("STRASSE") and normalized("Save") != normalized("Saved")


def test_words_that_differ_in_their_vowel_signs_stay_different() -> None:
    words = ["की", "का", "के", "กิน", "กัน", "กุน"]
    assert len({normalized(word) for word in words}) == len(words)
    assert normalized("u\u0308ber") == normalized("Über")


def test_text_is_cleaned_of_marks_and_returns() -> None:
    assert clean_text("\ufeffa\r\nb\rc\ufeff") == "a\nb\nc\ufeff"


def test_what_cannot_be_text_is_told() -> None:
    assert bad_text("fine ä 漢") is None
    assert "NUL" in str(bad_text("a\0b")) and "surrogate" in str(bad_text("a\ud800"))
