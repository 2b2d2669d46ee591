"""Words and shingles of many texts at once, as 64-bit hashes.

A text is compared without case, punctuation and spacing: a word is a run of letters, digits, marks and underscores, in simple
case folding (one character to one: `ß` stays, and composed and decomposed accents differ). Scripts without spaces (Han, kana,
Thai, Lao, Khmer, Burmese, Tibetan) have one word a character. A shingle is `width` words in a row (Broder 1997, "On the
resemblance and containment of documents", section 2); a text of fewer words is one shingle, a text of none has none.

Splitting in Python costs 28 MB per CPU-second. Here a batch of texts becomes one buffer of folded UTF-8 with single
separators, and everything after that is numpy: eight bytes of every word per gather, and windows of n words by doubling.
Hashes are pure functions of the text: the same for any batch, process and byte order. They follow the Unicode tables of the
interpreter, so `VERSION` names them.

Costs: about 10 times the bytes of a batch in temporary memory. A batch is BATCH_CHARACTERS, or one text if that is longer.
"""

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash

VERSION = f"1-unicode{unicodedata.unidata_version}"
"""Changes with whatever changes a hash."""
BATCH_CHARACTERS = 1 << 18
"""Text that is taken at once: its arrays stay in the processor's cache."""
LONG_WORD = 32
"""Bytes from which on a word is hashed alone, so that the number of passes is bounded."""
_PADDING = bytes(LONG_WORD)
_SPACE, _LINE = 32, 10
_ALONE = np.uint32(1 << 31)
"""Marks a character that is a word by itself in the table of `_unicode_table`."""
_ALONE_RANGES = (
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3040, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9D), (0x1B000, 0x1B16F),
)  # fmt: skip
"""Thai to Tibetan, Burmese, Khmer, radicals, kana, Han; planes 2 and 3 are Han as a whole."""
_MASKS = np.array([(1 << (8 * size)) - 1 for size in range(9)], dtype=np.uint64)
_FIRST, _SECOND, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93), 0xA0761D6478BD642F


@dataclass(frozen=True)
class Words:
    """The W words of N texts."""

    folded: bytes
    """The texts in lower case, one separator or more between words, a line feed after each text."""
    starts: np.ndarray
    """(W,) int64: first byte of each word in `folded`."""
    ends: np.ndarray
    """(W,) int64: the byte after its last."""
    hashes: np.ndarray
    """(W,) uint64."""
    first: np.ndarray
    """(N + 1,) int64: the first word of each text, then W."""

    def windows(self, width: int) -> np.ndarray:
        """(W,) uint64: hash of the `width` words from each word on. Windows that leave the text mean nothing."""
        window, size = self.hashes, 1
        for bit in f"{width:b}"[1:]:
            window = _joined(window, window, size, size)
            size *= 2
            if bit == "1":
                window = _joined(window, self.hashes, size, 1)
                size += 1
        return _finished(window)

    def words(self, start: int, width: int) -> bytes:
        """Some words in a row, one space between them."""
        return b" ".join(self.folded[self.starts[start] : self.ends[start + width - 1]].split())


def batches(texts: Sequence[str]) -> Iterator[slice]:
    """Slices of the texts of about BATCH_CHARACTERS."""
    start = size = 0
    for at, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield slice(start, at + 1)
            start, size = at + 1, 0
    if start < len(texts):
        yield slice(start, len(texts))


def words_of(texts: Sequence[str]) -> Words:
    """The words of some texts; lone surrogates and control characters separate words."""
    folded = _folded(texts)
    sizes = np.fromiter((len(text) + 1 for text in folded), dtype=np.int64, count=len(folded))
    buffer = b"\n".join([*folded, _PADDING])
    is_word = np.frombuffer(buffer, np.uint8, sizes.sum()) > _SPACE
    edges = np.flatnonzero(is_word[1:] != is_word[:-1]) + 1
    if len(is_word) and is_word[0]:
        edges = np.concatenate([[0], edges])
    starts, ends = edges[0::2], edges[1::2]
    first = np.searchsorted(starts, np.concatenate([[0], np.cumsum(sizes)]))
    return Words(buffer, starts, ends, _hashes(buffer, starts, ends), first)


def flat_shingles(texts: Sequence[str], width: int) -> tuple[np.ndarray, np.ndarray]:
    """The shingles of some texts, in their order and with repeats.

    Returns:
        (S,) uint64 of all texts, and (N + 1,) uint64, where those of each text begin.
    """
    words = words_of(texts)
    counts = np.diff(words.first)
    shingles = words.windows(width)
    used = np.where(counts < width, np.minimum(counts, 1), counts - width + 1)
    for short in np.unique(counts[(counts > 0) & (counts < width)]).tolist():
        at = words.first[:-1][counts == short]
        shingles[at] = words.windows(short)[at]
    wanted = np.ones(len(shingles), dtype=bool)
    unused = counts - used
    offsets = np.arange(unused.sum()) - np.repeat(np.cumsum(unused) - unused, unused)
    wanted[np.repeat(words.first[:-1] + used, unused) + offsets] = False
    return shingles[wanted], np.concatenate([[0], np.cumsum(used)]).astype(np.uint64)


def shingle_sets(texts: Sequence[str], width: int) -> list[np.ndarray]:
    """The set of shingles of each text: (S,) uint64, ascending, without repeats."""
    sets = []
    for batch in batches(texts):
        flat, offsets = flat_shingles(texts[batch], width)
        sets += [np.unique(part) for part in np.split(flat, offsets[1:-1].astype(np.int64))]
    return sets


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Size of the intersection over that of the union, of two sets as `shingle_sets` gives them; 0 where both are empty."""
    if np.array_equal(left, right):
        return float(len(left) > 0)
    both = np.sort(np.concatenate([left, right]))
    shared = int(np.count_nonzero(both[1:] == both[:-1]))
    return shared / (len(both) - shared)


def _hashes(buffer: bytes, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(W,) uint64 of words: eight bytes at a time, xxh3 of the few long ones."""
    window = np.ndarray((len(buffer) - 7,), "<u8", buffer, 0, (1,))
    sizes = ends - starts
    hashes = _mixed(window[starts] & _MASKS[np.minimum(sizes, 8)])
    for begin in range(8, LONG_WORD, 8):
        longer = np.flatnonzero((sizes > begin) & (sizes <= LONG_WORD))
        part = window[starts[longer] + begin] & _MASKS[np.minimum(sizes[longer] - begin, 8)]
        hashes[longer] = _mixed(hashes[longer] ^ part)
    for at in np.flatnonzero(sizes > LONG_WORD).tolist():
        hashes[at] = xxhash.xxh3_64_intdigest(buffer[starts[at] : ends[at]])
    return hashes


def _mixed(values: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits: words of up to eight bytes never collide."""
    values = values * _FIRST
    values ^= values >> np.uint64(32)
    return values


def _joined(left: np.ndarray, right: np.ndarray, left_size: int, right_size: int) -> np.ndarray:
    """Windows of left_size + right_size words: a polynomial in _STEP, whatever the way in which it is put together."""
    joined = left * np.uint64(pow(_STEP, right_size, 1 << 64))
    joined[:-left_size] += right[left_size:]
    return joined


def _finished(values: np.ndarray) -> np.ndarray:
    values = values ^ (values >> np.uint64(32))
    values *= _SECOND
    values ^= values >> np.uint64(29)
    return values


def _folded(texts: Sequence[str]) -> list[bytes]:
    """Each text in lower case, every separator a space."""
    table = _ascii_table()
    folded = [text.encode().translate(table) if text.isascii() else b"" for text in texts]
    others = [at for at, text in enumerate(texts) if not text.isascii()]
    if others:
        for at, text in zip(others, _folded_unicode([texts[at] for at in others]), strict=True):
            folded[at] = text
    return folded


def _folded_unicode(texts: Sequence[str]) -> list[bytes]:
    codes = np.frombuffer(" ".join(texts).encode("utf-32-le", "surrogatepass"), "<u4")
    folded = _unicode_table()[codes]
    sizes = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
    folded[np.cumsum(sizes)[:-1] - 1] = _LINE
    alone = folded >= _ALONE
    if alone.any():
        widths = np.where(alone, 3, 1)  # a space on either side
        spread = np.full(widths.sum(), _SPACE, dtype=np.uint32)
        spread[np.cumsum(widths) - widths + alone] = folded & ~_ALONE
        folded = spread
    return folded.astype("<u4", copy=False).tobytes().decode("utf-32-le").encode().split(b"\n")


@functools.cache
def _ascii_table() -> bytes:
    return bytes(int(code) for code in _unicode_table()[:128]) + b" " * 128


@functools.cache
def _unicode_table() -> np.ndarray:
    """(0x110000,) uint32: what each code point becomes, with _ALONE added where it is a word by itself. 4.5 MB, 50 ms."""
    table = np.full(0x110000, _SPACE, dtype=np.uint32)
    for code in range(0x20000):
        if code == ord("_") or unicodedata.category(chr(code))[0] in "LNM":
            table[code] = _fold(chr(code))
    for first, last in _ALONE_RANGES:
        table[first : last + 1] |= np.where(table[first : last + 1] == _SPACE, np.uint32(0), _ALONE)
    table[0x20000:0x3FFFE] = np.arange(0x20000, 0x3FFFE, dtype=np.uint32) | _ALONE
    return table


def _fold(letter: str) -> int:
    for folded in (letter.casefold(), letter.lower()):
        if len(folded) == 1:
            return ord(folded)
    return ord(letter)
