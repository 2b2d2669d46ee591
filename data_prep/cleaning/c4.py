"""Rules of C4 for pages and for lines.

Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", section 2.2.
Rules for pages look at the page as it came in; then lines go; then sentences are counted in what is left. A page that loses no
line keeps every byte; in one that does, runs of blank lines become one. Of the authors' code (tensorflow_datasets, c4_utils.py)
three habits are not taken, since the paper does not name them: citation marks stay, lines with words of 1,000 characters stay,
and a line may end in an ellipsis.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from data_prep.cleaning.batch import Batch
from data_prep.cleaning.line_edits import texts_without
from data_prep.cleaning.rule import KEPT, Edit, Outcome, Rule, RuleEdit, first_rule
from pretrain.data.cleaning_settings import C4Settings
from pretrain.errors import ConfigError

SOURCE = "Raffel et al. 2020 (C4), section 2.2"
_SENTENCE_END = re.compile("[.!?]+[\"'”\u2019)\\]]*(?=\\s|$)")


def placeholder_text(batch: Batch, limits: C4Settings) -> np.ndarray:
    """The page holds "lorem ipsum". Raffel et al. 2020, section 2.2."""
    return batch.documents_at(batch.places(limits.placeholder_phrases))


def source_code(batch: Batch, limits: C4Settings) -> np.ndarray:
    """The page holds a curly bracket. Raffel et al. 2020, section 2.2."""
    return np.fromiter(
        (any(sign in text for sign in limits.code_characters) for text in batch.texts), dtype=bool, count=len(batch)
    )


def unpunctuated_line(batch: Batch, limits: C4Settings) -> np.ndarray:
    """The line does not end in a terminal punctuation mark. Raffel et al. 2020, section 2.2."""
    if limits.line_endings == "any":
        return np.zeros(len(batch.line_begin), dtype=bool)
    return ~np.isin(batch.last_characters(), [ord(sign) for sign in limits.terminal_punctuation])


def short_line(batch: Batch, limits: C4Settings) -> np.ndarray:
    """The line has too few words. Raffel et al. 2020, section 2.2."""
    return batch.line_words < limits.min_line_words


def script_line(batch: Batch, limits: C4Settings) -> np.ndarray:
    """The line holds "javascript". Raffel et al. 2020, section 2.2."""
    return batch.lines_at(batch.places(limits.script_words))


def policy_line(batch: Batch, limits: C4Settings) -> np.ndarray:
    """The line holds a phrase of cookie, privacy and terms-of-use notices. Raffel et al. 2020, section 2.2."""
    return batch.lines_at(batch.places(limits.policy_phrases))


def has_sentences(text: str, at_least: int) -> bool:
    """Whether a text has that many sentences: ends of sentences, and a line without one counts as one.

    Raffel et al. 2020, section 2.2, count them; how is not said.
    """
    count = 0
    for line in text.split("\n"):
        if line.strip():
            count += max(1, len(_SENTENCE_END.findall(line)))
            if count >= at_least:
                return True
    return count >= at_least


PAGE_RULES = (
    Rule("placeholder_text", SOURCE, ("placeholder_phrases",), removes=placeholder_text),
    Rule("source_code", SOURCE, ("code_characters",), removes=source_code),
    Rule("bad_words", SOURCE, ("bad_words_path",)),
)
LINE_RULES = (
    Rule(
        "unpunctuated_line", SOURCE, ("line_endings", "terminal_punctuation"), effect="line", removes=unpunctuated_line
    ),
    Rule("short_line", SOURCE, ("min_line_words",), effect="line", removes=short_line),
    Rule("script_line", SOURCE, ("script_words",), effect="line", removes=script_line),
    Rule("policy_line", SOURCE, ("policy_phrases",), effect="line", removes=policy_line),
)
RULES = (*PAGE_RULES, *LINE_RULES, Rule("too_few_sentences", SOURCE, ("min_sentences",)))
_BAD_WORDS = PAGE_RULES.index(PAGE_RULES[-1])
_TOO_FEW = len(RULES) - 1


class C4:
    """The step."""

    name = "c4"
    rules = RULES

    def __init__(self, settings: C4Settings) -> None:
        self.settings = settings
        self.bad_words = _read_words(settings.bad_words_path)
        self._bad = _any_of(self.bad_words)

    def apply(self, batch: Batch) -> Outcome:
        """Judges pages and lines; leaves on the batch which lines are kept."""
        removed = first_rule(self.rules, batch, self.settings)
        if self._bad is not None:
            for document in np.flatnonzero(batch.alive & ((removed == KEPT) | (removed > _BAD_WORDS))):
                if self._bad.search(batch.texts[document].lower()):
                    removed[document] = _BAD_WORDS
        verdict = self._lines(batch)
        batch.line_kept = kept = verdict == KEPT
        left = batch.per_document(kept)
        open_ = batch.alive & (removed == KEPT)
        edits = _edits(batch, verdict, np.flatnonzero(open_ & (left < batch.lines)))
        for document in np.flatnonzero(open_ & ~self._surely_enough(left)).tolist():
            text = edits[document].text if document in edits else batch.texts[document]
            if not has_sentences(text, self.settings.min_sentences):
                removed[document] = _TOO_FEW
                edits.pop(document, None)
        return Outcome(removed, edits)

    def edited(self, texts: list[str]) -> list[str]:
        """Texts that are known to be kept, without the lines that go."""
        batch = Batch(texts)
        verdict = self._lines(batch)
        changed = np.flatnonzero(batch.per_document(verdict == KEPT) < batch.lines)
        for document, text in zip(changed.tolist(), texts_without(batch, verdict != KEPT, changed), strict=True):
            texts[document] = text
        return texts

    def _lines(self, batch: Batch) -> np.ndarray:
        """(L,) the place of the first rule that removes each line, KEPT where none does."""
        found = np.full(len(batch.line_begin), KEPT, dtype=np.int8)
        for place, rule in enumerate(LINE_RULES):
            assert rule.removes is not None
            found[(found == KEPT) & rule.removes(batch, self.settings)] = place
        return found

    def _surely_enough(self, left: np.ndarray) -> np.ndarray:
        """(D,) whether lines alone, each a sentence or more, suffice."""
        return left >= self.settings.min_sentences


def _edits(batch: Batch, verdict: np.ndarray, documents: np.ndarray) -> dict[int, Edit]:
    """What the line rules change of some documents (N,), by document.

    Args:
        batch: the documents.
        verdict: (L,) the place of the rule that removes each line, KEPT where none does.
        documents: (N,) those that lose a line and stay, ascending.
    """
    going = np.flatnonzero(verdict != KEPT)
    case = batch.document_of_line[going] * len(LINE_RULES) + verdict[going]
    cases = len(batch) * len(LINE_RULES)
    places = np.bincount(case, minlength=cases).tolist()
    removed_bytes = np.bincount(case, weights=(batch.line_end - batch.line_begin)[going], minlength=cases).tolist()
    first = np.zeros(cases, dtype=np.int64)
    first[case[::-1]] = batch.raw_line[going[::-1]]  # of equal places the last one written stays
    edits = {}
    for document, text in zip(documents.tolist(), texts_without(batch, verdict != KEPT, documents), strict=True):
        by_rule = {}
        for place, rule in enumerate(LINE_RULES, start=document * len(LINE_RULES)):
            if places[place]:
                example = batch.raw_line_text(int(first[place])).strip()
                by_rule[rule.name] = RuleEdit(places[place], int(removed_bytes[place]), example)
        edits[document] = Edit(text, by_rule)
    return edits


def _read_words(path: str | None) -> tuple[str, ...]:
    """The words of a file, one a line.

    Raises:
        ConfigError: the file cannot be read as UTF-8, or holds no word.
    """
    if path is None:
        return ()
    try:
        words = sorted({line.strip().lower() for line in Path(path).read_text(encoding="utf-8").splitlines()} - {""})
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"c4.bad_words_path: {path} cannot be read ({error}): give a UTF-8 file, or null") from error
    if not words:
        raise ConfigError(f"c4.bad_words_path: {path} holds no word: give one a line, or null for no such rule")
    return tuple(words)


def _any_of(words: Iterable[str]) -> re.Pattern[str] | None:
    told = "|".join(re.escape(word) for word in words)
    return re.compile(rf"(?<!\w)(?:{told})(?!\w)") if told else None
