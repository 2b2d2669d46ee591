"""gigatoken as peers use it: a batch of texts to one array of tokens and the lengths of its documents.

A module of its own, so that worker processes import it and load a tokenizer once.
"""

from collections.abc import Sequence
from functools import cache

import gigatoken
import numpy as np

END_OF_TEXT = "<|endoftext|>"


@cache
def tokenizer_of(path: str) -> gigatoken.Tokenizer:
    """From a tokenizer.json."""
    return gigatoken.Tokenizer(path)


def encode(path: str, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) uint16 tokens, an end of text after each document, and (D,) lengths."""
    tokenizer = tokenizer_of(path)
    found = tokenizer.encode_batch(list(texts), parallel=False).layout
    offsets, ids = np.asarray(found.offsets.data), np.asarray(found.content.data)
    end = tokenizer.encode(END_OF_TEXT)[0]
    return np.insert(ids, offsets[1:], end).astype(np.uint16), np.diff(offsets) + 1
