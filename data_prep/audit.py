"""The audit of a fast engine: a share of the text is encoded again by the reference while the corpus is prepared.

The reference is 30 to 90 times as slow as gigatoken and takes 0.5 to 1 s of CPU for a MB in pieces, so a share of 0.01 costs
5 to 10 ms for a MB of corpus, as much as gigatoken itself, and the default of 0.001 a tenth of that: arithmetic that no
sampling escapes. What sampling must not add is whole documents of a megabyte for one unlucky hash. So long documents are
audited in units of `UNIT` characters, cut where the words of the known patterns end whatever stands on the other side, and
compared with the ids that the engine gave for the whole document.

The choice is a function of each text alone (a hash of its length, ends and middle): any order and number of workers audits
the same.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import xxhash

from data_prep.token_engines import Engines
from pretrain.errors import DataError

AUDIT_FRACTION = 0.001
UNIT = 8192
"""Characters audited at once."""
CUT = re.compile(r"[!-~]\n(?=[A-Za-z])")
"""A line's end between characters that are no space: GPT-2's, Llama 3's and Qwen 2's patterns all end a word behind it, and none
looks further ahead. (After a space, `\\s+(?!\\S)` does.)"""
SHOWN = 80
HASHED = 512
"""Characters at each of three places that the choice depends on: hashing all would cost as much as the audit."""


class Audit:
    """Compares a share of what an engine gives out with the reference's ids."""

    def __init__(self, engines: Engines, fraction: float, token_bytes: np.ndarray) -> None:
        """Takes the engines, the share in [0, 1], and (V,) bytes that each id stands for."""
        self._engines, self._fraction, self._token_bytes = engines, fraction, token_bytes
        self._off = fraction == 0 or engines.fast is engines.reference
        self.audited_bytes = 0
        """UTF-8 bytes that were encoded twice."""

    def check(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> None:
        """Raises DataError where the ids of an audited piece are not the reference's.

        Args:
            texts: as given to the engine.
            encoded: (T,) uint32 for each text, as it gave them.
        """
        if self._off:
            return
        for text, ids in zip(texts, encoded, strict=True):
            for start, end in self.pieces(text):
                self._compare(text, ids, start, end)

    def pieces(self, text: str) -> Iterator[tuple[int, int]]:
        """Spans of characters to audit; none for most texts."""
        drawn = _draw(text)
        share, place = (drawn >> 64) / 2**64, (drawn & (2**64 - 1)) / 2**64
        units = max(round(len(text) / UNIT), 1) if self._engines.cuttable else 1
        count = int(
            self._fraction * units + share
        )  # on average the fraction of all units, for long texts and short ones
        for number in range(count):
            unit = int((number + place) * units / count)
            start = self._cut(text, unit * UNIT) if unit else 0
            end = self._cut(text, (unit + 1) * UNIT) if unit + 1 < units else len(text)
            if start < end:
                yield start, end

    def _cut(self, text: str, least: int) -> int:
        """The first place from `least` on where a text can be cut; its end where there is none."""
        found = CUT.search(text, least)
        return found.end() if found else len(text)

    def _compare(self, text: str, ids: np.ndarray, start: int, end: int) -> None:
        piece = text[start:end]
        self.audited_bytes += len(piece.encode())
        right = self._engines.reference.encode([piece])[0]
        first = 0
        if start > 0:
            ends = np.cumsum(self._token_bytes[ids].astype(np.int64))
            first = int(np.searchsorted(ends, len(text[:start].encode()))) + 1
        last = first + len(right) if end < len(text) else len(ids)
        if not np.array_equal(ids[first:last], right):
            raise DataError(
                f"the tokenizer engine {self._engines.fast.name} gives other ids than Hugging Face's tokenizers for "
                f"{piece[:SHOWN]!r}; set data.prepare.tokenizer.engine: hf, and please report the text"
            )


def _draw(text: str) -> int:
    """128 bits that depend on a text alone."""
    if len(text) > 3 * HASHED:
        middle = len(text) // 2
        text = f"{len(text)} {text[:HASHED]}{text[middle : middle + HASHED]}{text[-HASHED:]}"
    return xxhash.xxh3_128_intdigest(text.encode())
