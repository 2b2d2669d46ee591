"""The data part of the config: what the ranks read, and what `pretrain prepare` makes it from."""

from typing import Literal

from pydantic import Field

from pretrain.settings import Fraction, PositiveInt, Settings


class CorpusSettings(Settings):
    """Where documents come from."""

    source: Literal["standard_library", "text", "jsonl", "parquet", "hub", "message_catalogues"]
    """`standard_library`: the .py files of the running interpreter. `text`: one document a file. `jsonl`, `parquet`: one
    document a row. `hub`: a data set by name, through `datasets`. `message_catalogues`: gettext .mo files, read as pairs."""
    paths: tuple[str, ...] = Field(default=(), strict=False)
    """Files, folders or globs of `text`, `jsonl`, `parquet` and `message_catalogues`."""
    packages: tuple[str, ...] = Field(default=(), strict=False)
    """Debian packages that hold the catalogues, fetched with apt-get and unpacked under the data folder."""
    name: str | None = None
    """Of a `hub` data set."""
    revision: str | None = None
    """Commit of a `hub` data set; required there, so that a run can be repeated."""
    text_field: str = "text"
    """The column of a row that holds the document."""
    source_language: str = "en"
    """Of pairs."""
    target_language: str = "de"
    """Of pairs; the language code of the catalogues."""


class TokenizerSettings(Settings):
    """The tokenizer: trained on the corpus, or taken from a tokenizer.json."""

    path: str | None = None
    """An existing tokenizer.json; None: one is trained."""
    vocab_size: PositiveInt = 8192
    """Size of a trained vocabulary, special tokens included."""
    training_bytes: PositiveInt = 32_000_000
    """Bytes of text that a trained tokenizer sees, drawn evenly from the corpus."""


class PrepareSettings(Settings):
    """What `pretrain prepare` does."""

    corpus: CorpusSettings
    tokenizer: TokenizerSettings = TokenizerSettings()
    validation_fraction: Fraction = 0.02
    """Share of documents held out for validation, chosen by a hash of their content."""
    bad_document_limit: Fraction = 0.05
    """Share of documents that may be unreadable (not UTF-8, malformed rows) before preparation stops; each is quarantined."""
    shard_tokens: PositiveInt = 16_777_216
    """Most tokens in a shard."""
    task_bytes: PositiveInt = 8_388_608
    """Text that one task tokenizes, in bytes; fixed, so that output is the same for any number of workers."""


class DataSettings(Settings):
    """What the ranks read."""

    dir: str
    """Folder of the prepared data: manifest.json, tokenizer.json, token shards."""
    objective: Literal["causal", "seq2seq"] = "causal"
    sequence_length: PositiveInt
    """Tokens of a (target) sequence as the model sees it."""
    source_length: PositiveInt | None = None
    """Tokens of a source sequence (seq2seq)."""
    document_mask: Literal["isolate", "cross"] = "isolate"
    """`isolate`: attention does not cross document ends, positions restart, and the crossing target is ignored."""
    prefetch: PositiveInt = 2
    """Global batches that the prefetch thread keeps ready."""
    prepare: PrepareSettings | None = None
    """How the folder is made; None: it must exist."""
