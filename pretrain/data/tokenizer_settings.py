"""The part of the config that says which tokenizer is trained or taken."""

from typing import Literal

from pretrain.settings import PositiveInt, Settings


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
