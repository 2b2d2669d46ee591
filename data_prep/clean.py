"""Cleaning: pure functions from a text (or pair) to what is kept of it, or to the reason why it is not.

Each step is one function here. What is bad (quarantined, counted against `bad_document_limit`) cannot be text; what is dropped
(counted by reason) is text that a model should not learn from.
"""

import re
import unicodedata

BYTE_ORDER_MARK = "\ufeff"

MARKERS = ("~", "_", "&")
"""Keyboard accelerators in messages: LibreOffice, GTK, Qt."""
_LETTER = re.compile(r"[^\W\d_]")
_ENTITY = re.compile(r"&(#\d+|#x[0-9a-fA-F]+|[a-zA-Z]+);")
_WORD_OF = {marker: re.compile(rf"[\w{re.escape(marker)}]*{re.escape(marker)}[\w{re.escape(marker)}]*") for marker in MARKERS}
MAX_LENGTH_RATIO = 4.0
MIN_RATIO_CHARACTERS = 12


def clean_text(text: str) -> str:
    """Text without a byte order mark, lines ended by a plain line feed."""
    return text.removeprefix(BYTE_ORDER_MARK).replace("\r\n", "\n").replace("\r", "\n")


def bad_text(text: str) -> str | None:
    """Why a decoded text is no text; None where it is one."""
    if "\0" in text:
        return "holds a NUL character"
    if not text.isascii() and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        return "holds half of a surrogate pair"
    return None


def clean_pair(source: str, target: str, max_characters: int) -> tuple[str, str] | str:
    """The cleaned sides of a pair, or the reason why it is dropped.

    Args:
        source: a message or sentence.
        target: its translation.
        max_characters: longest side that is kept.
    """
    source, target = _strip_markers(_one_line(source), _one_line(target))
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
    """The key under which two messages count as the same: letters, digits and signs, no case, spacing or punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(letter for letter in folded if letter.isalnum())


def _one_line(text: str) -> str:
    return " ".join(clean_text(text).split())


def _strip_markers(source: str, target: str) -> tuple[str, str]:
    """Removes keyboard accelerators: `_Open` and `Ö_ffnen`, `~File` and `~Datei`.

    A marker is one only where both sides hold exactly one, each before a letter or digit: names like `file_name` mostly stand
    alone in one of the sides, or stand in both unchanged, and are kept.
    """
    for marker in MARKERS:
        places = [_places(text, marker) for text in (source, target)]
        if [len(found) for found in places] != [1, 1]:
            continue
        words = [_WORD_OF[marker].search(text) for text in (source, target)]
        if _within_word(source, places[0][0]) and words[0] and words[1] and words[0].group() == words[1].group():
            continue
        source, target = (text[: found[0]] + text[found[0] + 1 :] for text, found in zip((source, target), places, strict=True))
    return source, target


def _places(text: str, marker: str) -> list[int]:
    """Where a marker may be an accelerator, if it is the only one; both of a doubled marker (an escape) are counted."""
    found = [at for at, letter in enumerate(text) if letter == marker]
    if len(found) != 1 or (marker == "&" and _ENTITY.search(text)):
        return found if len(found) != 1 else []
    after = text[found[0] + 1 : found[0] + 2]
    return found if after.isalnum() else []


def _within_word(text: str, at: int) -> bool:
    return at > 0 and text[at - 1].isalnum()
