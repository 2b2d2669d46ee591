"""The part of the config that says which tokenizer is trained or taken."""

from typing import Literal

from pretrain.settings import Fraction, PositiveInt, Settings

EngineName = Literal["auto", "gigatoken", "tiktoken", "hf"]
ENGINE_CHOICE = {"engine", "audit_fraction"}
"""Settings that change how fast a corpus is encoded, and no byte of what is made."""


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
    engine: EngineName = "auto"
    """What encodes the corpus, with the ids of Hugging Face's `tokenizers` (`hf`) in any case: the fastest that is installed and
    agrees with it, or one by name. Changes no byte of the shards."""
    audit_fraction: Fraction = 0.001
    """Share of the text that `hf` encodes again while a faster engine works; a difference ends the run. `hf` needs 0.5 to 1 s of
    CPU for a MB: 0.001 adds 10 to 20 % to gigatoken's time, 0.01 doubles it. 0: no audit. Changes no byte of the shards."""
