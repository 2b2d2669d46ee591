"""Quality and repetition heuristics of Gopher, one function each.

Source: Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", section A.1.1 and table A1.
What the paper leaves open is decided so: words stand between white space; blank lines are no lines; characters of shares are
those of lines or words; *duplicate* means equal to an earlier one; stop words are different ones, in any case.
"""

import re
from functools import lru_cache, partial

import numpy as np

from data_prep.cleaning.batch import Batch
from data_prep.cleaning.ngrams import duplicate_share, top_share
from data_prep.cleaning.rule import Rule, share
from pretrain.data.cleaning_settings import GopherQualitySettings, GopherRepetitionSettings

QUALITY_SOURCE = "Rae et al. 2021 (Gopher), section A.1.1, quality filtering"
REPETITION_SOURCE = "Rae et al. 2021 (Gopher), section A.1.1, repetition removal, table A1"
ELLIPSIS = "…"
_LETTER = re.compile(r"[^\W\d_]")
_WORD = re.compile(r"\w+")


def too_few_words(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """Fewer than 50 words. Rae et al. 2021, section A.1.1."""
    return batch.words < limits.min_words


def too_many_words(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """More than 100,000 words. Rae et al. 2021, section A.1.1."""
    return batch.words > limits.max_words


def short_words(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """Mean word length below 3 characters. Rae et al. 2021, section A.1.1."""
    return (batch.words > 0) & (share(batch.characters, batch.words) < limits.min_mean_word_characters)


def long_words(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """Mean word length above 10 characters. Rae et al. 2021, section A.1.1."""
    return share(batch.characters, batch.words) > limits.max_mean_word_characters


def hash_signs(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """More than 0.1 hash signs for each word. Rae et al. 2021, section A.1.1."""
    return share(_counts(batch, "#"), batch.words) > limits.max_symbols_per_word


def ellipses(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """More than 0.1 ellipses (`...` or one character) for each word. Rae et al. 2021, section A.1.1."""
    return share(_ellipses(batch), batch.words) > limits.max_symbols_per_word


def bullet_lines(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """More than 90 % of lines start with a bullet. Rae et al. 2021, section A.1.1."""
    bullets = np.isin(batch.first_characters(), [ord(bullet) for bullet in limits.bullets])
    return share(batch.per_document(bullets), batch.lines) > limits.max_bullet_lines


def ellipsis_lines(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """More than 30 % of lines end with an ellipsis. Rae et al. 2021, section A.1.1."""
    ends = (batch.last_characters() == ord(ELLIPSIS)) | batch.lines_end_with(b"...")
    return share(batch.per_document(ends), batch.lines) > limits.max_ellipsis_lines


def few_alphabetic_words(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """Less than 80 % of words hold a letter. Rae et al. 2021, section A.1.1.

    Words that begin with an ASCII letter settle most documents, words that hold one most others; the rest is read.
    """
    found = share(batch.words_begin_with_ascii_letter(), batch.words) < limits.min_alphabetic_words
    found &= batch.alive & (batch.words > 0)
    unclear = np.flatnonzero(found)
    part = Batch([batch.texts[document] for document in unclear])
    found[unclear] = share(part.words_with_ascii_letter(), part.words) < limits.min_alphabetic_words
    for document in np.flatnonzero(found):
        if not batch.texts[document].isascii():
            with_letter = sum(1 for word in batch.words_of(int(document)) if _LETTER.search(word))
            found[document] = with_letter / batch.words[document] < limits.min_alphabetic_words
    return found


def few_stop_words(batch: Batch, limits: GopherQualitySettings) -> np.ndarray:
    """Fewer than two different ones of the, be, to, of, and, that, have, with. Rae et al. 2021, section A.1.1."""
    if not limits.min_stop_words:
        return np.zeros(len(batch), dtype=bool)
    stop_words, least = _stop_words(limits.stop_words), limits.min_stop_words
    found = batch.alive.copy()
    for document in np.flatnonzero(found).tolist():
        found[document] = not stop_words.in_text(batch.texts[document], least)
    return found


def duplicate_lines(batch: Batch, limits: GopherRepetitionSettings) -> np.ndarray:
    """More than 0.30 of lines are duplicates. Rae et al. 2021, table A1."""
    return share(batch.per_document(batch.line_repeats), batch.lines) > limits.duplicate_lines


def duplicate_paragraphs(batch: Batch, limits: GopherRepetitionSettings) -> np.ndarray:
    """More than 0.30 of paragraphs are duplicates. Rae et al. 2021, table A1."""
    document = batch.document_of_paragraph
    repeats = np.bincount(document[batch.paragraph_repeats], minlength=len(batch))
    return share(repeats, np.bincount(document, minlength=len(batch))) > limits.duplicate_paragraphs


def duplicate_line_characters(batch: Batch, limits: GopherRepetitionSettings) -> np.ndarray:
    """More than 0.20 of characters are in duplicate lines. Rae et al. 2021, table A1."""
    repeated = batch.per_document(batch.line_characters * batch.line_repeats)
    return share(repeated, batch.per_document(batch.line_characters)) > limits.duplicate_line_characters


def duplicate_paragraph_characters(batch: Batch, limits: GopherRepetitionSettings) -> np.ndarray:
    """More than 0.20 of characters are in duplicate paragraphs. Rae et al. 2021, table A1."""
    repeats = np.repeat(batch.paragraph_repeats, np.diff(batch.paragraph_offset))
    repeated = batch.per_document(batch.line_characters * repeats)
    return share(repeated, batch.per_document(batch.line_characters)) > limits.duplicate_paragraph_characters


def top_ngram_characters(batch: Batch, limits: GopherRepetitionSettings, size: int) -> np.ndarray:
    """More than 0.20, 0.18, 0.16 of characters are in the top 2-, 3-, 4-gram. Rae et al. 2021, table A1."""
    limit = getattr(limits, f"top_{size}gram_characters")
    return top_share(batch, size, limit) > limit


def duplicate_ngram_characters(batch: Batch, limits: GopherRepetitionSettings, size: int) -> np.ndarray:
    """More than 0.15, 0.14 ... 0.10 of characters are in duplicate 5-, 6- ... 10-grams. Rae et al. 2021, table A1."""
    limit = getattr(limits, f"duplicate_{size}gram_characters")
    return duplicate_share(batch, size, limit) > limit


def _quality(function, *thresholds: str) -> Rule:
    return Rule(function.__name__, QUALITY_SOURCE, thresholds, removes=function)


def _repetition(function, name: str = "") -> Rule:
    name = name or function.__name__
    return Rule(name, REPETITION_SOURCE, (name,), removes=function)


QUALITY_RULES = (
    _quality(too_few_words, "min_words"),
    _quality(too_many_words, "max_words"),
    _quality(short_words, "min_mean_word_characters"),
    _quality(long_words, "max_mean_word_characters"),
    _quality(hash_signs, "max_symbols_per_word"),
    _quality(ellipses, "max_symbols_per_word"),
    _quality(bullet_lines, "max_bullet_lines", "bullets"),
    _quality(ellipsis_lines, "max_ellipsis_lines"),
    _quality(few_alphabetic_words, "min_alphabetic_words"),
    _quality(few_stop_words, "min_stop_words", "stop_words"),
)
REPETITION_RULES = (
    _repetition(duplicate_lines),
    _repetition(duplicate_paragraphs),
    _repetition(duplicate_line_characters),
    _repetition(duplicate_paragraph_characters),
    *(_repetition(partial(top_ngram_characters, size=size), f"top_{size}gram_characters") for size in (2, 3, 4)),
    *(
        _repetition(partial(duplicate_ngram_characters, size=size), f"duplicate_{size}gram_characters")
        for size in range(5, 11)
    ),
)


def _counts(batch: Batch, symbol: str) -> np.ndarray:
    if symbol.encode() not in batch.joined:
        return np.zeros(len(batch), dtype=np.int64)
    return np.fromiter((text.count(symbol) for text in batch.texts), dtype=np.int64, count=len(batch))


def _ellipses(batch: Batch) -> np.ndarray:
    return _counts(batch, "...") + _counts(batch, ELLIPSIS)


class _StopWords:
    """Whether texts hold some different stop words."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._any = re.compile(rf"\b(?:{'|'.join(re.escape(word) for word in sorted(words))})\b", re.IGNORECASE)
        plain = [word.lower() for word in words if word.isascii()] if all(map(_WORD.fullmatch, words)) else []
        self._between_spaces = [f" {word} " for word in dict.fromkeys(plain)]

    def in_text(self, text: str, least: int) -> bool:
        """Whether a text has `least` of them; stops reading when it has. Those between spaces settle most texts."""
        count = 0
        for word in self._between_spaces:
            count += word in text
            if count >= least:
                return True
        seen = set()
        for match in self._any.finditer(text):
            seen.add(match.group().lower())
            if len(seen) >= least:
                return True
        return False


_stop_words = lru_cache(maxsize=8)(_StopWords)
