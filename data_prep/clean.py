"""Cleaning: pure functions from a text (or pair) to what is kept of it, or to the reason why it is not.

Each step is one function here. What is bad (quarantined, counted against `bad_document_limit`) cannot be text; what is dropped
(counted by reason) is text that a model should not learn from.
"""

import re
import unicodedata

BYTE_ORDER_MARK = "\ufeff"
HOLDS_NUL, HOLDS_SURROGATE = "holds a NUL character", "holds half of a surrogate pair"

MARKERS = ("~", "_", "&")
"""Keyboard accelerators in messages: LibreOffice, GTK, Qt."""
LABEL_CHARACTERS = 100
"""Accelerators stand in the labels of buttons and menus; a longer text that holds a marker talks about something else."""
_LETTER = re.compile(r"[^\W\d_]")
_ENTITY = re.compile(r"&(#\d+|#x[0-9a-fA-F]+|[a-zA-Z]+);")
MAX_LENGTH_RATIO = 4.0
MIN_RATIO_CHARACTERS = 12


def clean_text(text: str) -> str:
    """Text without a byte order mark, lines ended by a plain line feed."""
    text = text.removeprefix(BYTE_ORDER_MARK)
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def bad_text(text: str) -> str | None:
    """Why a decoded text is no text; None where it is one."""
    if "\0" in text:
        return HOLDS_NUL
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return HOLDS_SURROGATE
    return None


def clean_pair(source: str, target: str, max_characters: int) -> tuple[str, str] | str:
    """The cleaned sides of a pair, or the reason why it is dropped.

    Args:
        source: a message or sentence.
        target: its translation.
        max_characters: longest side that is kept.
    """
    source, target = _one_line(source), _one_line(target)
    for marker in MARKERS:
        source, target = _without_marker(source, target, marker), _without_marker(target, source, marker)
    if not _LETTER.search(source) or not _LETTER.search(target):
        return "a side without letters"
    if max(len(source), len(target)) > max_characters:
        return "a side that is too long"
    if normalized(source) == normalized(target):
        return "both sides identical"
    shorter, longer = sorted((len(source), len(target)))
    if longer > MIN_RATIO_CHARACTERS and longer > MAX_LENGTH_RATIO * shorter:
        return "sides of very different length"
    return source, target


def normalized(text: str) -> str:
    """The key under which two messages count as the same: letters, digits and marks, no case, spacing or punctuation.

    Marks are the vowels of Hindi, Thai and others: without them, different words would be one.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if letter.isalnum() or unicodedata.category(letter).startswith("M"))


def _one_line(text: str) -> str:
    return " ".join(clean_text(text).split())


def _without_marker(text: str, other: str, marker: str) -> str:
    """The text without its keyboard accelerator: `_Open`, `Ö_ffnen`, `~File`, `Wiedergabeliste &öffnen`.

    A marker is one where it stands once, before a letter, in a short text. Within a word it may belong to a name instead
    (`file_name`, `America/Cambridge_Bay`): a name stands in the translation as well, unchanged.
    """
    if text.count(marker) != 1 or len(text) > LABEL_CHARACTERS:
        return text
    at = text.index(marker)
    if not text[at + 1 : at + 2].isalpha():
        return text
    if at > 0 and text[at - 1].isalnum():
        is_name = marker == "&" or _word_around(text, at) in {
            _word_around(other, place) for place in _places(other, marker)
        }
    else:
        is_name = marker == "&" and _ENTITY.match(text, at) is not None
    return text if is_name else text[:at] + text[at + 1 :]


def _places(text: str, marker: str) -> list[int]:
    return [at for at, letter in enumerate(text) if letter == marker]


def _word_around(text: str, at: int) -> str:
    """The run of letters, digits and underscores on both sides of a place."""
    before = re.search(r"\w*$", text[:at])
    after = re.match(r"\w*", text[at + 1 :])
    assert before and after, "both match the empty text"
    return f"{before.group()}{text[at]}{after.group()}"
