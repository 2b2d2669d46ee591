"""For each rule a text that it acts on and one that it leaves, on the two sides of the published threshold."""

from itertools import islice, product

from tests.data_prep.cleaning.texts import PROSE


def distinct(number: int, start: int = 0, length: int = 5) -> list[str]:
    """Different words of one length."""
    letters = product("abcdefghijklmnopqrstuvwxyz", repeat=4)
    return ["w" * (length - 4) + "".join(word) for word in islice(letters, start, start + number)]


def text_lines(different: int, repeated: int, end: str = ".") -> str:
    """Lines of one length, some of which repeat the first."""
    told = [" ".join(distinct(5, 5 * line)) + end for line in range(different)]
    return "\n".join(told + [told[0]] * repeated)


def with_top(size: int, times: int) -> str:
    """100 words of which one n-gram, that never overlaps itself, covers `size x times`."""
    fillers = iter(distinct(1000, 100))
    told: list[str] = []
    for _ in range(times):
        told += [*distinct(size), next(fillers)]
    return " ".join([*told, *islice(fillers, max(0, 100 - len(told)))][:100])


def with_repeat(words: int) -> str:
    """100 words of which the last `words` repeat the first."""
    return " ".join([*distinct(100 - words), *distinct(words)])


def alphabetic(with_letter: int) -> str:
    return " ".join(distinct(with_letter) + [f"{number}" for number in range(100, 200 - with_letter)])


def punctuated(lines: int) -> str:
    return "\n".join(" ".join(distinct(8, 8 * line)) + ("." if line < lines else "") for line in range(100))


def short(lines: int) -> str:
    return "\n".join(distinct(1, line, 29 if line < lines else 30)[0] for line in range(100))


SENTENCES = "This is the first of them. Here a second one is told. And now there is a third."
GERMAN = "Der Hafen liegt nördlich der Altstadt, und die meisten Boote sind seit Mitternacht auf See gewesen. " * 3

DOCUMENT_EXAMPLES: dict[tuple[str, str], tuple[str, str]] = {
    ("gopher_quality", "too_few_words"): (" ".join(distinct(49)), " ".join(distinct(50))),
    ("gopher_quality", "too_many_words"): ("a " * 100_001, "a " * 100_000),
    ("gopher_quality", "short_words"): ("aaa " * 99 + "aa", "aaa " * 100),
    ("gopher_quality", "long_words"): ("a" * 10 + " " + "a" * 11, "ä" * 10 + " " + "a" * 10),
    ("gopher_quality", "hash_signs"): ("word " * 17 + "#word " * 3, "word " * 18 + "#word " * 2),
    ("gopher_quality", "ellipses"): ("word " * 17 + "word... " * 2 + "word…", "word " * 18 + "word... word…"),
    ("gopher_quality", "bullet_lines"): ("• word\n" * 9 + "- word", "• word\n" * 9 + "word"),
    ("gopher_quality", "ellipsis_lines"): ("word…\n" * 3 + "word...\n" + "word\n" * 6, "word…\n" * 3 + "word\n" * 7),
    ("gopher_quality", "few_alphabetic_words"): (alphabetic(79), alphabetic(80)),
    ("gopher_quality", "few_stop_words"): ("the cat, the dog", "The cat with the dog"),
    ("gopher_repetition", "duplicate_lines"): (text_lines(6, 4), text_lines(7, 3)),
    ("gopher_repetition", "duplicate_paragraphs"): (
        text_lines(6, 4).replace("\n", "\n\n"),
        text_lines(7, 3).replace("\n", "\n \n"),
    ),
    ("gopher_repetition", "duplicate_line_characters"): (text_lines(7, 3), text_lines(8, 2)),
    ("gopher_repetition", "duplicate_paragraph_characters"): (
        text_lines(7, 3).replace("\n", "\n\n"),
        text_lines(8, 2).replace("\n", "\n\n"),
    ),
    ("gopher_repetition", "top_2gram_characters"): (with_top(2, 11), with_top(2, 10)),
    ("gopher_repetition", "top_3gram_characters"): (with_top(3, 7), with_top(3, 6)),
    ("gopher_repetition", "top_4gram_characters"): (with_top(4, 5), with_top(4, 4)),
    ("gopher_repetition", "duplicate_5gram_characters"): (with_repeat(16), with_repeat(15)),
    ("gopher_repetition", "duplicate_6gram_characters"): (with_repeat(15), with_repeat(14)),
    ("gopher_repetition", "duplicate_7gram_characters"): (with_repeat(14), with_repeat(13)),
    ("gopher_repetition", "duplicate_8gram_characters"): (with_repeat(13), with_repeat(12)),
    ("gopher_repetition", "duplicate_9gram_characters"): (with_repeat(12), with_repeat(11)),
    ("gopher_repetition", "duplicate_10gram_characters"): (with_repeat(11), with_repeat(10)),
    ("fineweb", "few_punctuated_lines"): (punctuated(12), punctuated(13)),
    ("fineweb", "repeated_lines"): (text_lines(9, 1), text_lines(10, 1)),
    ("fineweb", "short_lines"): (short(67), short(66)),
}
"""(step, rule): the rule removes the first, and lets the second be."""

CHAIN_EXAMPLES: dict[tuple[str, str], tuple[str, str]] = {
    ("language", "no_letters"): ("12 + 30 = 42", PROSE),
    ("language", "other_language"): (GERMAN, PROSE),
    ("language", "uncertain_language"): ("home contact info login sport", PROSE),
    ("c4", "placeholder_text"): (f"{SENTENCES} Lorem Ipsum.", f"{SENTENCES} Lorem, ipsum."),
    ("c4", "source_code"): (f"{SENTENCES} x = {{", f"{SENTENCES} x = (."),
    ("c4", "bad_words"): (f"{SENTENCES} Darn.", f"{SENTENCES} Darning."),
    ("c4", "too_few_sentences"): (SENTENCES[:53], SENTENCES),
}
"""A chain of this step alone removes the first by this rule, and keeps the second as it is."""

EDIT_EXAMPLES: dict[tuple[str, str], tuple[str, str]] = {
    ("c4", "unpunctuated_line"): ("A line that has no end,", 'A line, "that has an end."'),
    ("c4", "short_line"): ("These are four words.", "These are now five words."),
    ("c4", "script_line"): ("Please turn on JavaScript in it.", "Please turn on Java Script in it."),
    ("c4", "policy_line"): ("Read our Privacy Policy before you go.", "Read about privacy in our policy now."),
    ("personal_data", "email_address"): (
        "Write to jane.doe+x@mail.example.co.uk, please.",
        "Write to jane at home, or @jane.",
    ),
    ("personal_data", "ip_address"): (
        "It came from 8.8.4.4.",
        "It came from 10.0.0.1, 192.168.1.7, 8.8.8.300 or version 1.2.3.",
    ),
    ("personal_data", "phone_number"): (
        "Call +49 30 1234567 or (555) 010-9999 now.",
        "From 2001-2010, 1,234,567 of 12 345 came.",
    ),
}
"""A chain of this step alone changes the first by this rule, and keeps the second as it is."""
