"""The tokenizer of imported tokens: byte-level, its end-of-text token under our name, its ids unchanged.

A tokenizer that names its end token otherwise has the two names exchanged, so that whoever reads the folder, or prepares more
data with its tokenizer.json, finds the end of a document under the one name. No text can become a special token, so this changes
the ids of no text. Alternative not taken: only to write the id into the manifest (a corpus prepared later with the same file
would end its documents with another token).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from data_prep.tokenize import SPECIAL_TOKENS, read_tokenizer, special_tokens, token_byte_lengths, vocabulary_size
from pretrain.data.manifest import END_OF_TEXT, SpecialTokens
from pretrain.errors import DataError

SHOWN_NAMES = 8


@dataclass(frozen=True)
class ImportedTokenizer:
    """What an import has to know of a tokenizer."""

    path: Path
    content: str
    """Of the folder's tokenizer.json."""
    special: SpecialTokens
    known_ids: int
    """Ids below this one are the tokenizer's own; the special tokens that were added to it come after them."""
    vocab_size: int
    token_bytes: np.ndarray
    """(V,) uint16: bytes of text of each token."""


def read_imported_tokenizer(path: Path, end_of_text: str) -> ImportedTokenizer:
    """A tokenizer.json, with `end_of_text` as its end of a document.

    Raises DataError where it is missing, unreadable, not byte-level, or has no special token of that name; StorageError.
    """
    path = path.expanduser()
    complete = read_tokenizer(path)
    plain = Tokenizer.from_file(str(path))
    if end_of_text != END_OF_TEXT or plain.token_to_id(END_OF_TEXT) is None:
        complete = _with_special_tokens(_exchanged(path, json.loads(plain.to_str()), end_of_text))
    return ImportedTokenizer(
        path,
        complete.to_str(pretty=True),
        special_tokens(complete),
        vocabulary_size(plain),
        vocabulary_size(complete),
        token_byte_lengths(complete),
    )


def _with_special_tokens(content: dict[str, Any]) -> Tokenizer:
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in missing])
    return tokenizer


def _exchanged(path: Path, content: dict[str, Any], end_of_text: str) -> dict[str, Any]:
    """A tokenizer.json in which `end_of_text` and <|endoftext|> have each other's names."""
    special = [token["content"] for token in content["added_tokens"] if token["special"]]
    if end_of_text not in special:
        raise DataError(
            f"{path}: has no special token {end_of_text}; name the one that ends its documents with end_of_text "
            f"(special tokens: {', '.join(special[:SHOWN_NAMES]) or 'none'})"
        )
    names = {end_of_text: END_OF_TEXT, END_OF_TEXT: end_of_text}
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    model = content["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(token, token): number for token, number in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    content["post_processor"] = None  # it names tokens, and serves only to add special ones to a text
    return content
