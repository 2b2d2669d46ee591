"""The part of the config that says how `pretrain prepare` makes a data folder."""

from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.tokenizer_settings import TokenizerSettings
from pretrain.settings import Fraction, PositiveInt, Settings


class PrepareSettings(Settings):
    """What `pretrain prepare` does."""

    corpus: CorpusSettings
    tokenizer: TokenizerSettings = TokenizerSettings()
    validation_fraction: Fraction = 0.02
    """Share of documents held out for validation, chosen by a hash of their content."""
    bad_document_limit: Fraction = 0.05
    """Share of documents that may be unreadable (not UTF-8, malformed rows) before preparation stops; each is quarantined."""
    max_document_bytes: PositiveInt = 67_108_864
    """Longest document, in bytes; a longer one is quarantined: it is a dump or a log more often than a text."""
    pair_max_characters: PositiveInt = 300
    """Longest side of a pair, in characters; pairs beyond it are dropped (Vaswani et al. 2017 train on single sentences)."""
    shard_tokens: PositiveInt = 16_777_216
    """Most tokens in a shard; a single longer document still makes one."""
    task_bytes: PositiveInt = 8_388_608
    """Text that one task tokenizes, in bytes; fixed, so that output is the same for any number of workers."""
