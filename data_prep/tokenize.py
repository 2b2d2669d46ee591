"""Tokenizers: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), trained here or taken from a file, and their use.

Training is that of Hugging Face's `tokenizers`; the contract with everyone else is its `tokenizer.json`; encoding is by
whichever engine gives its ids fastest (`data_prep.token_engines`). Any byte can be encoded, so there is no unknown token.
Special tokens are added by the pipeline alone: `<|endoftext|>` in a text is the letters that it is.

Not taken: gigatoken's trainer. It is several times as fast and knows GPT-2's pattern alone; training is a minute of a
preparation.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from data_prep.audit import AUDIT_FRACTION, Audit
from data_prep.token_engines import BYTES, LLAMA3_PATTERN, HuggingFace, choose_engine
from pretrain.data.token_shards import END_OF_TEXT, PADDING, TARGET, SpecialTokens
from pretrain.data.tokenizer_settings import EngineName, TokenizerSettings
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

SPECIAL_TOKENS = (END_OF_TEXT, TARGET, PADDING)


def train_tokenizer(texts: Iterable[str], settings: TokenizerSettings) -> Tokenizer:
    """A byte-level BPE tokenizer; the same texts give the same one, whatever the number of threads.

    Args:
        texts: of training documents alone.
        settings: size and pattern.

    Raises:
        DataError: the vocabulary is too small for the bytes and special tokens.
    """
    if settings.vocab_size < BYTES + len(SPECIAL_TOKENS):
        raise DataError(
            f"prepare.tokenizer.vocab_size={settings.vocab_size}: a byte-level vocabulary has at least "
            f"{BYTES + len(SPECIAL_TOKENS)} tokens ({BYTES} bytes and {len(SPECIAL_TOKENS)} special ones)"
        )
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=settings.pattern == "gpt2")
    if settings.pattern == "llama3":
        split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    else:
        tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer from a file, with the special tokens added where it lacks them.

    Raises DataError where the file is missing, unreadable, or not byte-level.
    """
    try:
        with told_as_storage_error(path):
            content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: prepare.tokenizer.path names no file (relative to {Path.cwd()})") from None
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: not a tokenizer.json that the tokenizers library reads ({error})") from None
    if '"ByteLevel"' not in json.dumps(json.loads(tokenizer.to_str())["decoder"]):
        raise DataError(
            f"{path}: not a byte-level tokenizer; prepare.tokenizer.path takes those of GPT-2's kind, "
            "for only their tokens stand for a known number of bytes"
        )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return tokenizer


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Ids of the special tokens."""
    ids = [number for token in SPECIAL_TOKENS if (number := tokenizer.token_to_id(token)) is not None]
    assert len(ids) == len(SPECIAL_TOKENS), "read_tokenizer and train_tokenizer add them"
    return SpecialTokens(*ids)


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """(V,) uint16: bytes of text that each token stands for; 0 for special tokens and ids that are not in use."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values()) + 1, dtype="<u2")
    added = tokenizer.get_added_tokens_decoder()
    for token, number in vocabulary.items():
        if number not in added:
            lengths[number] = len(token)  # a byte-level vocabulary spells every byte as one letter
        elif not added[number].special:
            lengths[number] = len(token.encode())
    return lengths


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: the rows of an embedding."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


class Encoder:
    """A tokenizer at work on documents, by the fastest exact engine; text never becomes a special token.

    A share of the text is encoded again by the reference and compared with what was given out (`data_prep.audit`).
    """

    def __init__(
        self, tokenizer: Path | str | Tokenizer, engine: EngineName = "auto", audit_fraction: float = AUDIT_FRACTION
    ) -> None:
        """Takes a tokenizer.json, or a tokenizer that has the special tokens.

        Raises DataError where the named engine does not serve.
        """
        content = tokenizer.to_str() if isinstance(tokenizer, Tokenizer) else _content(Path(tokenizer))
        self._engines = choose_engine(content, engine)
        self.special, self.vocab_size, token_bytes = _facts(self._engines.reference)
        self.engine = self._engines.fast.name
        """The engine in use."""
        self.notes = self._engines.notes
        """Why not a faster one."""
        self.audit = Audit(self._engines, audit_fraction, token_bytes)

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        """Ids of each text, (T,) uint32, without special tokens. `utf8` are the same texts, where the caller has them.

        Raises DataError for a lone surrogate, and where the audit finds other ids than the reference's.
        """
        try:
            encoded = self._engines.fast.encode(texts, utf8)
        except UnicodeEncodeError as error:
            raise DataError(
                f"a text holds the lone surrogate {error.object[error.start]!r}, which no UTF-8 can spell; "
                "leave the document out, or replace the character"
            ) from None
        self.audit.check(texts, encoded)
        return encoded


def _content(path: Path) -> str:
    with told_as_storage_error(path):
        return path.read_text(encoding="utf-8")


@lru_cache(maxsize=4)  # a process makes an Encoder for every task
def _facts(reference: HuggingFace) -> tuple[SpecialTokens, int, np.ndarray]:
    lengths = token_byte_lengths(reference.tokenizer)
    return special_tokens(reference.tokenizer), len(lengths), lengths
