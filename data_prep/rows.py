"""From decoded strings to documents and pairs: what every format has in common.

A maker gives a Document, a Dropped, or a `str` that says why the row is bad; the format knows the file and the line, and makes
the BadDocument. The makers are closures over the settings: they run once a row, at a million rows a second and core.
"""

from collections.abc import Callable
from typing import Any

from data_prep.clean import HOLDS_NUL, HOLDS_SURROGATE, bad_text, clean_pair, clean_text
from data_prep.items import EMPTY, Document, Dropped
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings

Made = Document | Dropped | str
"""A `str` is the reason why it is bad."""
DROPPED_EMPTY = Dropped(EMPTY)


def text_of(text: str, max_document_bytes: int) -> Made:
    """The document of one text."""
    text = clean_text(text)
    if "\0" in text:
        return HOLDS_NUL
    if not text or text.isspace():
        return DROPPED_EMPTY
    try:
        document = Document((text,))
    except UnicodeEncodeError:
        return HOLDS_SURROGATE
    size = document.text_bytes
    return document if size <= max_document_bytes else too_long(size, max_document_bytes)


def too_long(size: int, max_document_bytes: int) -> str:
    """Why a document of a size is bad."""
    return f"{size:,} bytes, over max_document_bytes={max_document_bytes:,}"


def pair_of(source: str, target: str, pair_max_characters: int) -> Made:
    """The pair of two sides."""
    for side in (source, target):
        if reason := bad_text(side):
            return reason
    if not source.strip() or not target.strip():
        return DROPPED_EMPTY
    cleaned = clean_pair(source, target, pair_max_characters)
    return Dropped(cleaned) if isinstance(cleaned, str) else Document(cleaned)


def values_maker(corpus: CorpusSettings, prepare: PrepareSettings) -> Callable[..., Made]:
    """From the values of a row, one for each of `corpus.fields` (None for null, ABSENT), to what it is."""
    names, longest, characters = corpus.fields, prepare.max_document_bytes, prepare.pair_max_characters

    def text(value: Any) -> Made:
        return text_of(value, longest) if isinstance(value, str) else _not_text(names[0], value)

    def pair(source: Any, target: Any) -> Made:
        for name, value in zip(names, (source, target), strict=True):
            if not isinstance(value, str):
                return _not_text(name, value)
        return pair_of(source, target, characters)

    return text if len(names) == 1 else pair


def object_maker(corpus: CorpusSettings, prepare: PrepareSettings) -> Callable[[Any], Made]:
    """From a decoded JSON value to what it is."""
    names, make = corpus.fields, values_maker(corpus, prepare)
    first = names[0]

    def text(row: Any) -> Made:
        if not isinstance(row, dict):
            return "the row is no object"
        return make(row[first] if first in row else field_of(row, first))

    def pair(row: Any) -> Made:
        if not isinstance(row, dict):
            return "the row is no object"
        return make(*(field_of(row, name) for name in names))

    return text if len(names) == 1 else pair


def field_of(row: Any, name: str) -> Any:
    """A field by its name, or by the dotted path to it; ABSENT where it is not there."""
    if isinstance(row, dict) and name in row:
        return row[name]
    for key in name.split("."):
        row = row.get(key, ABSENT) if isinstance(row, dict) else ABSENT
    return row


class _Absent:
    """Stands for a value that is not there, which null is."""


ABSENT = _Absent()


class Undecodable:
    """Stands for a value that is not UTF-8."""

    def __init__(self, error: UnicodeDecodeError) -> None:
        self.reason = f"not UTF-8: byte {error.start} is 0x{error.object[error.start]:02x}"


def _not_text(name: str, value: Any) -> str:
    if value is ABSENT:
        return f"no field {name!r}"
    if value is None:
        return f"field {name!r} is null, not text"
    if isinstance(value, Undecodable):
        return f"field {name!r} is {value.reason}"
    return f"field {name!r} is {type(value).__name__}, not text"
