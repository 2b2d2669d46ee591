"""The part of the config that says how `pretrain prepare` makes a data folder."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from pretrain.data.cleaning_settings import CleaningSettings
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.dedup_settings import DecontaminationSettings, DedupSettings
from pretrain.data.tokenizer_settings import TokenizerSettings
from pretrain.settings import Fraction, PositiveInt, Settings

MAIN_SOURCE = "main"
"""Name of the source where the config names none: a single corpus."""


class PrepareSettings(Settings):
    """What `pretrain prepare` does."""

    corpus: CorpusSettings | None = None
    """Where documents come from, if from one place: the source `main` of the data folder."""
    corpora: dict[str, CorpusSettings] = Field(default_factory=dict)
    """Where documents come from, if from several places: each is a source of its own, by the name that is given here, and can be
    weighed when it is read."""
    cleaning: CleaningSettings = CleaningSettings()
    """What a document must be like; text alone, pairs have rules of their own."""
    dedup: DedupSettings = DedupSettings()
    """Which repeated documents are dropped."""
    decontamination: DecontaminationSettings | None = None
    """Which documents are dropped because they share text with eval files; null: none."""
    tokenizer: TokenizerSettings = TokenizerSettings()
    validation_fraction: Fraction = 0.02
    """Share of documents held out for validation, chosen by a hash of their content."""
    bad_document_limit: Fraction = 0.05
    """Share of documents that may be unreadable (not UTF-8, malformed rows) before preparation stops; each is quarantined."""
    damaged_files: Literal["refuse", "keep_beginning"] = "refuse"
    """What becomes of a .gz or .zst file of rows or lines that is cut or altered: `refuse` ends the preparation, since nobody
    knows how much is lost behind the damage; `keep_beginning` takes what precedes it."""
    max_document_bytes: PositiveInt = 67_108_864
    """Longest document, in bytes; a longer one is quarantined: it is a dump or a log more often than a text."""
    pair_max_characters: PositiveInt = 300
    """Longest side of a pair, in characters; pairs beyond it are dropped (Vaswani et al. 2017 train on single sentences)."""
    shard_tokens: PositiveInt = 16_777_216
    """Most tokens in a shard; a single longer document still makes one."""
    task_bytes: PositiveInt = 8_388_608
    """Text that one task tokenizes, in bytes; fixed, so that output is the same for any number of workers."""

    @property
    def sources(self) -> Mapping[str, CorpusSettings]:
        """The corpora by the names of their sources."""
        return self.corpora or ({} if self.corpus is None else {MAIN_SOURCE: self.corpus})

    @property
    def kind(self) -> Literal["text", "pairs"]:
        """Whether documents are plain text or source-target pairs; all corpora are of one kind."""
        return next(iter(self.sources.values())).kind
