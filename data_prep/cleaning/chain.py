"""The chain of cleaning steps: a text goes in; what is kept of it, or the step and rule that removed it, comes out.

Steps run in one fixed order: language, gopher_quality, gopher_repetition, c4, fineweb, personal_data. Of a step's rules the
first in its order is the one that is told. Texts are judged in batches of about a megabyte (`batch.py`); a verdict depends on
the text alone. Each process makes its own chain: compiled expressions and the language model are not pickled, only settings
are.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_prep.cleaning import fineweb, gopher
from data_prep.cleaning.batch import Batch
from data_prep.cleaning.c4 import C4
from data_prep.cleaning.language import Language
from data_prep.cleaning.personal_data import PersonalData
from data_prep.cleaning.rule import KEPT, Edit, Outcome, Rule, first_rule
from data_prep.cleaning.tally import Tally
from pretrain.data.cleaning_settings import CleaningSettings

CHAIN_VERSION = 1
"""Raised when the same rules give another result: what a word or a line is, how a text is edited."""
BATCH_BYTES = 1 << 20
BATCH_DOCUMENTS = 2048


@dataclass(frozen=True)
class Kept:
    """A document that stays."""

    text: str
    """After edits."""


@dataclass(frozen=True)
class Removed:
    """A document that goes, and why."""

    step: str
    rule: str


class Heuristics:
    """A step made of rules that only remove documents."""

    def __init__(self, name: str, rules: Sequence[Rule], settings: object) -> None:
        self.name = name
        self.rules = tuple(rules)
        self.settings = settings

    def apply(self, batch: Batch) -> Outcome:
        """Judges the documents of a batch."""
        return Outcome(first_rule(self.rules, batch, self.settings))


class Chain:
    """The steps that the settings ask for.

    Raises:
        ConfigError: the file of bad words cannot be read.
    """

    def __init__(self, settings: CleaningSettings) -> None:
        self.settings = settings
        self._language = Language(settings.language) if settings.language else None
        self._column_steps = tuple(_column_steps(settings))
        self._c4 = next((step for step in self._column_steps if isinstance(step, C4)), None)
        self._personal_data = PersonalData(settings.personal_data) if settings.personal_data else None

    def __reduce__(self) -> tuple[type["Chain"], tuple[CleaningSettings]]:
        return Chain, (self.settings,)

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the steps that run, in their order."""
        return tuple(step.name for step in self._all_steps())

    @property
    def identity(self) -> str:
        """A hash of all that decides what is kept: settings, versions of rules, the list of bad words."""
        told = {
            "chain": CHAIN_VERSION,
            "settings": self.settings.model_dump(mode="json", exclude={"c4": {"bad_words_path"}}),
            "bad_words": self._c4.bad_words if self._c4 else (),
            "rules": {step.name: [[rule.name, rule.version] for rule in step.rules] for step in self._all_steps()},
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def run_many(self, texts: Sequence[str], tally: Tally) -> list[Kept | Removed]:
        """Cleans texts, and counts what happened to them.

        Args:
            texts: documents, without NUL characters or single surrogates.
            tally: counted into.

        Returns:
            What became of each, in their order.
        """
        results: list[Kept | Removed] = []
        for part in _parts(texts):
            results += self._run_part(part, tally)
        return results

    def run(self, text: str, tally: Tally) -> Kept | Removed:
        """Cleans one text; what `run_many` gives, at several times its cost for short ones."""
        return self.run_many([text], tally)[0]

    def edited_many(self, texts: Sequence[str]) -> list[str]:
        """The texts that `run_many` keeps of documents that it is known to keep: edits alone, nothing judged or counted."""
        results: list[str] = []
        for part in _parts(texts):
            part = self._c4.edited(part) if self._c4 else part
            results += [self._masked(text) for text in part]
        return results

    def edited(self, text: str) -> str:
        """The text that `run` keeps of a document that it is known to keep."""
        return self.edited_many([text])[0]

    def _all_steps(self) -> "Iterator[Language | Heuristics | C4 | PersonalData]":
        if self._language:
            yield self._language
        yield from self._column_steps
        if self._personal_data:
            yield self._personal_data

    def _run_part(self, texts: list[str], tally: Tally) -> list[Kept | Removed]:
        results: list[Kept | Removed | None] = [None] * len(texts)
        open_ = self._identify(texts, results, tally)
        if self._column_steps:
            self._judge(open_, texts, results, tally)
        if self._personal_data:
            self._mask(self._personal_data, texts, results, tally)
        return [Kept(texts[place]) if result is None else result for place, result in enumerate(results)]

    def _identify(self, texts: list[str], results: list[Kept | Removed | None], tally: Tally) -> list[int]:
        """Runs the language step; returns which texts are still in."""
        if not self._language:
            return list(range(len(texts)))
        verdicts = np.array([self._language.judge(text) for text in texts], dtype=np.int8)
        sizes = np.array([_size(text) for text in texts], dtype=np.int64)
        places = range(len(texts))
        alive = np.ones(len(texts), dtype=bool)
        _count(self._language, Outcome(verdicts), alive, sizes, places, texts, results, tally)
        return np.flatnonzero(verdicts == KEPT).tolist()

    def _judge(self, places: list[int], texts: list[str], results: list[Kept | Removed | None], tally: Tally) -> None:
        """Runs the steps that look at columns."""
        batch = Batch([texts[place] for place in places])
        sizes = batch.sizes.copy()
        for step in self._column_steps:
            if 2 * sizes[batch.alive].sum() < sizes.sum():
                places = [place for place, alive in zip(places, batch.alive, strict=True) if alive]
                batch = Batch([texts[place] for place in places])  # the dead would cost as much as the living
                sizes = batch.sizes.copy()
            outcome = step.apply(batch)
            _count(step, outcome, batch.alive, sizes, places, texts, results, tally)
            batch.alive &= outcome.removed == KEPT

    def _mask(self, step: PersonalData, texts: list[str], results: list[Kept | Removed | None], tally: Tally) -> None:
        places = [place for place, result in enumerate(results) if result is None]
        edits = {at: edit for at, place in enumerate(places) if (edit := step.mask(texts[place]))}
        outcome = Outcome(np.full(len(places), KEPT, dtype=np.int8), edits)
        sizes = np.array([_size(texts[place]) for place in places], dtype=np.int64)
        _count(step, outcome, np.ones(len(places), dtype=bool), sizes, places, texts, results, tally)

    def _masked(self, text: str) -> str:
        edit = self._personal_data.mask(text) if self._personal_data else None
        return edit.text if edit else text


def _column_steps(settings: CleaningSettings) -> Iterator[Heuristics | C4]:
    if settings.gopher_quality:
        yield Heuristics("gopher_quality", gopher.QUALITY_RULES, settings.gopher_quality)
    if settings.gopher_repetition:
        yield Heuristics("gopher_repetition", gopher.REPETITION_RULES, settings.gopher_repetition)
    if settings.c4:
        yield C4(settings.c4)
    if settings.fineweb:
        yield Heuristics("fineweb", fineweb.RULES, settings.fineweb)


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts in batches that fit the processor's caches."""
    part: list[str] = []
    size = 0
    for text in texts:
        if part and (size + len(text) > BATCH_BYTES or len(part) == BATCH_DOCUMENTS):
            yield part
            part, size = [], 0
        part.append(text)
        size += len(text)
    if part:
        yield part


def _size(text: str) -> int:
    """Bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _count(
    step: "Language | Heuristics | C4 | PersonalData",
    outcome: Outcome,
    alive: np.ndarray,
    sizes: np.ndarray,
    places: Sequence[int],
    texts: list[str],
    results: list[Kept | Removed | None],
    tally: Tally,
) -> None:
    """Writes what a step did into texts, sizes, results and the tally.

    Args:
        step: the step.
        outcome: what it did to the documents of a batch.
        alive: (D,) which documents came in.
        sizes: (D,) their bytes; those of edited ones are brought up to date.
        places: (D,) where the documents stand among the texts.
        texts, results: of the part; written.
        tally: counted into.
    """
    counts = tally.step(step.name)
    counts.documents_in += int(alive.sum())
    counts.bytes_in += int(sizes[alive].sum())
    for document in np.flatnonzero(alive & (outcome.removed != KEPT)).tolist():
        rule = step.rules[outcome.removed[document]].name
        results[places[document]] = Removed(step.name, rule)
        tally.rule(step.name, rule).add(int(sizes[document]), 0, texts[places[document]])
    for document, edit in outcome.edits.items():
        _take_edit(step.name, edit, places[document], texts, tally)
        sizes[document] = _size(edit.text)
    counts.documents_edited += len(outcome.edits)
    out = alive & (outcome.removed == KEPT)
    counts.documents_out += int(out.sum())
    counts.bytes_out += int(sizes[out].sum())


def _take_edit(step: str, edit: Edit, place: int, texts: list[str], tally: Tally) -> None:
    texts[place] = edit.text
    for rule, told in edit.by_rule.items():
        tally.rule(step, rule).add(told.removed_bytes, told.places, told.example)
