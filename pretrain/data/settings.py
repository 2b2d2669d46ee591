"""The data part of the config: what the ranks read, and what `pretrain prepare` makes it from."""

from pathlib import Path
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
    subset: str | None = None
    """Configuration of a `hub` data set, where it has several."""
    split: str = "train"
    """Split of a `hub` data set that is read."""
    revision: str | None = None
    """Commit of a `hub` data set; required there, so that a run can be repeated."""
    text_field: str = "text"
    """The column of a row that holds the document. A dot reaches into an object: `meta.body`."""
    source_field: str | None = None
    """With `target_field`: the rows are pairs, and these columns hold their sides (`translation.en`, `translation.de`)."""
    target_field: str | None = None
    """See `source_field`."""
    source_language: str = "en"
    """Of pairs."""
    target_language: str = "de"
    """Of pairs; the language code of the catalogues."""

    @property
    def kind(self) -> Literal["text", "pairs"]:
        """Whether documents are plain text or source-target pairs."""
        return "pairs" if self.source == "message_catalogues" or self.source_field else "text"


class TokenizerSettings(Settings):
    """The tokenizer: trained on the corpus, or taken from a tokenizer.json."""

    path: str | None = None
    """An existing byte-level tokenizer.json; None: one is trained."""
    vocab_size: PositiveInt = 8192
    """Size of a trained vocabulary, special tokens included."""
    pattern: Literal["gpt2", "llama3"] = "gpt2"
    """How text is cut into words before merging: GPT-2's expression, or Llama 3's, which keeps runs of spaces and up to three
    digits together (5 % fewer tokens on source code, 1.5 times slower to train)."""
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
    max_document_bytes: PositiveInt = 67_108_864
    """Longest document, in bytes; a longer one is quarantined: it is a dump or a log more often than a text."""
    pair_max_characters: PositiveInt = 300
    """Longest side of a pair, in characters; pairs beyond it are dropped (Vaswani et al. 2017 train on single sentences)."""
    shard_tokens: PositiveInt = 16_777_216
    """Most tokens in a shard; a single longer document still makes one."""
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
    """Tokens of a source sequence (seq2seq); None: `sequence_length`."""
    document_mask: Literal["isolate", "cross"] = "isolate"
    """`isolate`: attention does not cross document ends, positions restart, and the crossing target is ignored."""
    pair_packing: Literal["packed", "single"] = "packed"
    """`packed`: neighbouring pairs share a row as long as both sides fit; they do not see each other. `single`: one a row."""
    verify: Literal["read", "open", "never"] = "read"
    """When blocks of token shards are held against their checksums: each at its first read, all at the start, or not at all."""
    prefetch: PositiveInt = 2
    """Global batches that the prefetch thread keeps ready."""
    prepare: PrepareSettings | None = None
    """How the folder is made; None: it must exist."""

    @property
    def folder(self) -> Path:
        """`dir` as a path, relative to the folder where the command is started."""
        return Path(self.dir).expanduser()
