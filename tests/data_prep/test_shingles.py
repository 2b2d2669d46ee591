"""Shingles: what counts as a word, and hashes that depend on the text alone."""

import random

import numpy as np
import pytest

from data_prep import shingles
from data_prep.shingles import flat_shingles, jaccard, shingle_sets, words_of
from tests.data_prep.corpora import WORDS


def words_in(text: str) -> list[str]:
    words = words_of([text])
    return [words.words(at, 1).decode() for at in range(len(words.hashes))]


def expected_jaccard(left: list[str], right: list[str], width: int) -> float:
    first, second = ({tuple(words[at : at + width]) for at in range(len(words) - width + 1)} for words in (left, right))
    return len(first & second) / len(first | second)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't panic, 42_x!", ["don", "t", "panic", "42_x"]),
        ("ÄRGER — “naïve” Straße", ["ärger", "naïve", "straße"]),
        ("Ein 中文字 Text", ["ein", "中", "文", "字", "text"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("half \ud800 surrogate\0nul", ["half", "surrogate", "nul"]),
        ("\U00020000\U0001d400 😀", ["\U00020000", "\U0001d400"]),
        ("?! \n", []),
        ("", []),
    ],
)
def test_a_word_is_a_run_of_letters_digits_and_marks_without_case(text: str, words: list[str]) -> None:
    assert words_in(text) == words


def test_the_same_words_hash_alike_in_ascii_and_in_unicode_texts() -> None:
    plain, other = shingle_sets(["One two three FOUR five, six", "one two Three four   five six —"], 5)
    assert len(plain) == 2 and (plain == other).all()


def test_different_words_hash_differently() -> None:
    source = random.Random(0)
    words = list({"".join(source.choices("abcdeé01", k=source.randint(1, 45))) for _ in range(20_000)})
    assert len(np.unique(words_of([" ".join(words)]).hashes)) == len(words)


def test_a_hash_depends_on_every_byte_of_a_word() -> None:
    word = "a" * 70
    changed = [word[:at] + "b" + word[at + 1 :] for at in range(70)]
    lengths = ["a" * size for size in range(1, 70)]
    assert len(np.unique(words_of([*changed, *lengths, word]).hashes)) == 140


def test_a_shingle_depends_on_the_order_of_its_words() -> None:
    first, second = shingle_sets(["a b c d e", "b a c d e"], 5)
    assert first != second


def test_shingles_are_the_same_alone_and_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(1)
    texts = [" ".join(source.choices([*WORDS, "中文"], k=source.randint(0, 40))) for _ in range(300)]
    together = shingle_sets(texts, 5)
    alone = [shingle_sets([text], 5)[0] for text in texts]
    monkeypatch.setattr(shingles, "BATCH_CHARACTERS", 500)
    for other in (alone, shingle_sets(texts, 5)):
        assert all(np.array_equal(left, right) for left, right in zip(together, other, strict=True))


def test_no_shingle_spans_two_texts_and_a_short_text_is_one() -> None:
    flat, begins = flat_shingles(["a b c d e f", "", "x y", "!", "a b c d e"], 5)
    assert begins.tolist() == [0, 2, 2, 3, 3, 4]
    assert flat[0] == flat[3] and len(set(flat.tolist())) == 3


@pytest.mark.parametrize("width", [1, 2, 5, 13])
def test_the_jaccard_similarity_is_that_of_sets_of_words(width: int) -> None:
    source = random.Random(width)
    left = source.choices(WORDS, k=300)
    right = [source.choice(WORDS) if source.random() < 0.05 else word for word in left]
    sets = shingle_sets([" ".join(left), " ".join(right)], width)
    left, right = ([word.lower() for word in words] for words in (left, right))
    assert jaccard(sets[0], sets[1]) == pytest.approx(expected_jaccard(left, right, width))


def test_two_empty_sets_are_not_similar() -> None:
    assert jaccard(*shingle_sets(["", "?"], 5)) == 0.0


def test_hashes_are_pinned() -> None:
    """A change of these values needs a new `shingles.VERSION`: results kept from earlier runs would not match."""
    flat, _ = flat_shingles(["the quick brown fox jumps over", "größe 中文"], 5)
    assert [f"{value:016x}" for value in flat.tolist()] == ["aa1ee110306034a3", "c872cb5433746240", "56e4a5f454ffdf9e"]
