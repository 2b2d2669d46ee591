"""Tokenizers: byte-level BPE (Sennrich et al. 2016; Radford et al. 2019), trained here or taken from a file, and their use.

Training and encoding are those of Hugging Face's `tokenizers`; the contract with everyone else is its `tokenizer.json`. Any byte
can be encoded, so there is no unknown token. Special tokens are added by the pipeline alone: `encode_special_tokens` makes the
library treat `<|endoftext|>` in a text as the letters that it is.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pretrain.data.token_shards import END_OF_TEXT, PADDING, TARGET, SpecialTokens
from pretrain.data.tokenizer_settings import TokenizerSettings
from pretrain.errors import DataError
from pretrain.files import told_as_storage_error

SPECIAL_TOKENS = (END_OF_TEXT, TARGET, PADDING)
BYTES = 256
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Published with Llama 3's tokenizer."""


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
    lengths = np.zeros(vocabulary_size(tokenizer), dtype="<u2")
    added = tokenizer.get_added_tokens_decoder()
    for token, number in tokenizer.get_vocab(with_added_tokens=True).items():
        if number not in added:
            lengths[number] = len(token)  # a byte-level vocabulary spells every byte as one letter
        elif not added[number].special:
            lengths[number] = len(token.encode())
    return lengths


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: the rows of an embedding."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


class Encoder:
    """A tokenizer at work on documents; text never becomes a special token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self.special = special_tokens(tokenizer)
        self.vocab_size = vocabulary_size(tokenizer)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int64, without special tokens."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(item.ids, dtype=np.int64) for item in encoded]
