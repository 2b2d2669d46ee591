"""Lines go as a reading of the text line by line says."""

import random
import re

import numpy as np
import pytest

from data_prep.cleaning.batch import Batch
from data_prep.cleaning.line_edits import texts_without
from tests.data_prep.cleaning.texts import random_document

_LINES = (
    "A word.",
    "  two words  ",
    "",
    "",
    "  ",
    "\t\u3000",
    "\x01",
    " \x02 ",
    "\x85",
    "ende\u2028",
    "é",
    "\r",
    "x" * 90,
)


def slowly(text: str, going: set[int]) -> str:
    """`going` counts the lines that hold a word."""
    left, place = [], 0
    for line in text.split("\n"):
        word = re.search(r"[^\s\x00-\x20]", line) is not None
        if not (word and place in going):
            left.append("" if line.isspace() else line)
        place += word
    return re.sub(r"\n{3,}", "\n\n", "\n".join(left)).strip("\n")


def drawn(seed: int) -> str:
    draw = random.Random(seed)
    return random_document(seed) if seed % 3 == 0 else "\n".join(draw.choices(_LINES, k=draw.randint(0, 25)))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.8, 1.0])
def test_what_is_left_is_what_a_slow_reading_leaves(share: float) -> None:
    texts = [drawn(seed) for seed in range(300)]
    batch = Batch(texts)
    going = np.random.default_rng(0).random(len(batch.line_begin)) < share
    documents = np.arange(0, len(texts), 2)
    expected = []
    for document in documents.tolist():
        first, end = batch.line_offset[document : document + 2]
        expected.append(slowly(texts[document], set(np.flatnonzero(going[first:end]).tolist())))
    assert texts_without(batch, going, documents) == expected


def test_no_document_is_asked_for_and_none_is_there() -> None:
    nobody = np.array([], dtype=np.int64)
    assert texts_without(Batch(["a"]), np.array([True]), nobody) == []
    assert texts_without(Batch([]), np.array([], dtype=bool), nobody) == []
