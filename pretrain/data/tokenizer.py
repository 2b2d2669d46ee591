"""The tokenizer as training, evaluation and generation use it: text to ids and back.

The file is Hugging Face's `tokenizer.json`, read by the `tokenizers` library. Text is only ever text: `<|endoftext|>` typed by a
user, or found in a document, becomes the ids of its letters, never the special one.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer as Encoder

from pretrain.data.folder_check import check_tokenizer
from pretrain.data.token_shards import TOKENIZER_NAME, Manifest, SpecialTokens, read_manifest
from pretrain.errors import DataError


class Tokenizer:
    """Byte-level tokenizer of a data folder."""

    def __init__(self, encoder: Encoder, manifest: Manifest) -> None:
        self._encoder = encoder
        self.vocab_size: int = manifest.vocab_size
        """Special tokens included."""
        self.special: SpecialTokens = manifest.special
        self.hash: str = manifest.tokenizer_hash

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self._encoder.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are left out, bytes that make no UTF-8 become U+FFFD."""
        return self._encoder.decode([int(token) for token in ids], skip_special_tokens=True)


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a data folder (or of any folder that keeps its manifest.json and tokenizer.json).

    Raises DataError where it is missing, unreadable, or not the one that the token shards were made with.
    """
    manifest = read_manifest(folder)
    path = Path(folder) / TOKENIZER_NAME
    content = check_tokenizer(Path(folder), manifest)
    try:
        encoder = Encoder.from_buffer(content)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path}: not a tokenizer.json that the tokenizers library reads ({error})") from None
    encoder.encode_special_tokens = True
    return Tokenizer(encoder, manifest)
