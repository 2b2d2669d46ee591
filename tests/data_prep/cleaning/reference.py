"""A slow reading of the papers' rules, one document and one rule at a time. It shares no code with what it checks."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from pretrain.data.cleaning_settings import (
    C4Settings,
    FineWebSettings,
    GopherQualitySettings,
    GopherRepetitionSettings,
)

Verdict = Callable[[str, Any], bool]


def words(text: str) -> list[str]:
    """Runs of characters that are neither white space nor ASCII control characters."""
    return re.findall(r"[^\s\x00-\x20]+", text)


def lines(text: str) -> list[str]:
    """Lines that hold a word, without white space around."""
    return [" ".join(words(line)) for line in text.split("\n") if words(line)]


def paragraphs(text: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in text.split("\n"):
        if words(line):
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def stripped(line: str) -> str:
    """A line from its first word to its last, white space within as it is."""
    inner = words(line)
    return line[line.index(inner[0]) : line.rindex(inner[-1]) + len(inner[-1])]


def raw_lines(text: str) -> list[str]:
    return [stripped(line) for line in text.split("\n") if words(line)]


def of(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mean_length(text: str) -> float:
    return of(sum(map(len, words(text))), len(words(text)))


def ellipsis_count(text: str) -> int:
    return text.count("...") + text.count("…")


def alphabetic(text: str) -> float:
    return of(sum(any(letter.isalpha() for letter in word) for word in words(text)), len(words(text)))


def stop_words(text: str, wanted: Sequence[str]) -> int:
    return len({word.lower() for word in re.findall(r"\w+", text)} & set(wanted))


def line_share(text: str, test: Callable[[str], bool]) -> float:
    return of(sum(map(test, raw_lines(text))), len(raw_lines(text)))


def duplicates(items: Sequence[Any]) -> list[bool]:
    return [item in items[:place] for place, item in enumerate(items)]


def duplicate_characters(text: str) -> float:
    sizes = list(map(len, raw_lines(text)))
    repeated = sum(size for size, repeat in zip(sizes, duplicates(lines(text)), strict=True) if repeat)
    return of(repeated, sum(sizes))


def paragraph_keys(text: str) -> list[list[str]]:
    return [words("\n".join(paragraph)) for paragraph in paragraphs(text)]


def duplicate_paragraph_characters(text: str) -> float:
    repeated = 0
    for paragraph, repeat in zip(paragraphs(text), duplicates(paragraph_keys(text)), strict=True):
        repeated += sum(len(stripped(line)) for line in paragraph) if repeat else 0
    return of(repeated, sum(map(len, raw_lines(text))))


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    told = words(text)
    return [tuple(told[at : at + size]) for at in range(len(told) - size + 1)]


def top(text: str, size: int) -> float:
    counts = Counter(ngrams(text, size))
    most = max(counts.values(), default=0)
    if most < 2:
        return 0.0
    longest = max(sum(map(len, ngram)) for ngram, count in counts.items() if count == most)
    return of(most * longest, sum(map(len, words(text))))


def duplicate_ngrams(text: str, size: int) -> float:
    seen, covered = set(), set()
    for at, ngram in enumerate(ngrams(text, size)):
        if ngram in seen:
            covered |= set(range(at, at + size))
        seen.add(ngram)
    told = words(text)
    return of(sum(len(told[at]) for at in covered), sum(map(len, told)))


def quality(limits: GopherQualitySettings) -> dict[str, Callable[[str], bool]]:
    """Rule by rule, whether a document goes."""
    return {
        "too_few_words": lambda text: len(words(text)) < limits.min_words,
        "too_many_words": lambda text: len(words(text)) > limits.max_words,
        "short_words": lambda text: bool(words(text)) and mean_length(text) < limits.min_mean_word_characters,
        "long_words": lambda text: mean_length(text) > limits.max_mean_word_characters,
        "hash_signs": lambda text: text.count("#") / max(len(words(text)), 1) > limits.max_symbols_per_word,
        "ellipses": lambda text: ellipsis_count(text) / max(len(words(text)), 1) > limits.max_symbols_per_word,
        "bullet_lines": lambda text: line_share(text, lambda line: line[0] in limits.bullets) > limits.max_bullet_lines,
        "ellipsis_lines": lambda text: (
            line_share(text, lambda line: line.endswith(("...", "…"))) > limits.max_ellipsis_lines
        ),
        "few_alphabetic_words": lambda text: bool(words(text)) and alphabetic(text) < limits.min_alphabetic_words,
        "few_stop_words": lambda text: stop_words(text, limits.stop_words) < limits.min_stop_words,
    }


def repetition(limits: GopherRepetitionSettings) -> dict[str, Callable[[str], bool]]:
    """Rule by rule, whether a document goes."""

    def share_of_true(found: list[bool]) -> float:
        return of(sum(found), len(found))

    rules: dict[str, Callable[[str], bool]] = {
        "duplicate_lines": lambda text: share_of_true(duplicates(lines(text))) > limits.duplicate_lines,
        "duplicate_paragraphs": lambda text: (
            share_of_true(duplicates(paragraph_keys(text))) > limits.duplicate_paragraphs
        ),
        "duplicate_line_characters": lambda text: duplicate_characters(text) > limits.duplicate_line_characters,
        "duplicate_paragraph_characters": lambda text: (
            duplicate_paragraph_characters(text) > limits.duplicate_paragraph_characters
        ),
    }
    for size in (2, 3, 4):
        name = f"top_{size}gram_characters"
        rules[name] = lambda text, size=size, name=name: top(text, size) > getattr(limits, name)
    for size in range(5, 11):
        name = f"duplicate_{size}gram_characters"
        rules[name] = lambda text, size=size, name=name: duplicate_ngrams(text, size) > getattr(limits, name)
    return rules


def fineweb(limits: FineWebSettings) -> dict[str, Callable[[str], bool]]:
    """Rule by rule, whether a document goes."""
    return {
        "few_punctuated_lines": lambda text: (
            line_share(text, lambda line: line[-1] in limits.punctuation) <= limits.punctuated_lines
        ),
        "repeated_lines": lambda text: duplicate_characters(text) >= limits.duplicate_line_characters,
        "short_lines": lambda text: (
            line_share(text, lambda line: len(line) < limits.short_line_characters) >= limits.short_lines
        ),
    }


def c4_line(line: str, limits: C4Settings) -> str | None:
    """The rule that removes a line, None where none does."""
    if limits.line_endings == "terminal" and stripped(line)[-1] not in limits.terminal_punctuation:
        return "unpunctuated_line"
    if len(words(line)) < limits.min_line_words:
        return "short_line"
    folded = re.sub("[A-Z]", lambda letter: letter.group().lower(), line)
    if any(word in folded for word in limits.script_words):
        return "script_line"
    return "policy_line" if any(phrase in folded for phrase in limits.policy_phrases) else None


def c4(text: str, limits: C4Settings) -> tuple[str | None, str]:
    """The rule that removes a page (None where none does), and what is left of it."""
    folded = re.sub("[A-Z]", lambda letter: letter.group().lower(), text)
    if any(phrase in folded for phrase in limits.placeholder_phrases):
        return "placeholder_text", text
    if any(sign in text for sign in limits.code_characters):
        return "source_code", text
    raw = text.split("\n")
    left = [line for line in raw if not words(line) or c4_line(line, limits) is None]
    if len(left) < len(raw):
        told = "\n".join(line if words(line) else "" for line in left)
        text = re.sub(r"\n{3,}", "\n\n", told).strip("\n")
    sentences = sum(
        max(1, len(re.findall("[.!?]+[\"'”\u2019)\\]]*(?=\\s|$)", line))) for line in text.split("\n") if words(line)
    )
    return ("too_few_sentences" if sentences < limits.min_sentences else None), text
