"""Documents side by side: words, lines and their hashes as columns, so that a rule is one expression over all documents.

Documents are joined into one buffer of UTF-8; word borders are where white space begins and ends, words become 64-bit hashes,
and the hash of any run of words (a line, a paragraph, an n-gram) is one difference of a running polynomial sum. Equal hashes
count as equal text: at 64 bits a wrong verdict takes some 10^9 documents of 10^5 words. Hashes depend on the text alone, so a
document's verdict does not depend on its neighbours. Alternatives not taken: a dictionary of words (100 ns a word against 20,
and a memory that grows), a loop over lines (5 us a kB). Cost: 30 bytes of columns for each byte of text while a batch lives: 30
MB for a usual batch, 2 GB for one document of 64 MB (which Gopher's limit of words ends before most of it is spent).

Shapes: D documents, L lines (those that hold a word), W words, B bytes.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import xxhash

from data_prep.cleaning.running_hash import earlier_equal, mixed, running_sum, span_hashes

LINE_FEED, SPACE = 10, 32
LONG_WORD_BYTES = 64
"""A longer word is hashed on its own: rounds of 8 bytes over all words would otherwise follow the longest."""
_PAD = b"\0" * 8
_KEPT_BITS = np.array([(1 << (8 * count)) - 1 for count in range(9)], dtype=np.uint64)


class Batch:
    """Some documents and what the rules ask of them. Columns are made when first asked for.

    `alive` (D,) says which documents are still in: what is costly is measured for these alone. `line_kept` (L,) says which
    lines an earlier step left; None: all.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        encoded = [text.encode("utf-8", "surrogatepass") for text in self.texts]
        self.sizes = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
        self.joined = b"\n" + b"\n".join(encoded) + b"\n" + _PAD
        self._buffer = np.frombuffer(self.joined, dtype=np.uint8)
        self.begin = np.concatenate([[1], 1 + np.cumsum(self.sizes + 1)])
        """(D + 1,) where documents begin in the buffer."""
        self.alive = np.ones(len(self.texts), dtype=bool)
        self.line_kept: np.ndarray | None = None
        self.measured: dict[str, np.ndarray] = {}
        """What rules share beside the columns."""

    def __len__(self) -> int:
        return len(self.texts)

    # Words

    @cached_property
    def _edges(self) -> np.ndarray:
        """(2 W,) where words begin and end, in turn."""
        white = self._buffer <= SPACE
        if not self.joined.isascii():
            _mark_wide_spaces(self._buffer, white)
        return np.flatnonzero(white[1:] != white[:-1]) + 1

    @cached_property
    def word_begin(self) -> np.ndarray:
        """(W,) in the buffer."""
        return np.ascontiguousarray(self._edges[0::2])

    @cached_property
    def word_end(self) -> np.ndarray:
        """(W,) in the buffer, exclusive."""
        return np.ascontiguousarray(self._edges[1::2])

    @cached_property
    def word_offset(self) -> np.ndarray:
        """(D + 1,) the first word of each document."""
        return np.searchsorted(self.word_begin, self.begin)

    @cached_property
    def words(self) -> np.ndarray:
        """(D,) words."""
        return np.diff(self.word_offset)

    @cached_property
    def word_characters(self) -> np.ndarray:
        """(W,) characters of each word."""
        return self._characters_between(self.word_begin, self.word_end)

    @cached_property
    def characters(self) -> np.ndarray:
        """(D,) characters of words, white space left out."""
        return _sums(self.word_characters, self.word_offset)

    @cached_property
    def document_of_word(self) -> np.ndarray:
        """(W,)."""
        return np.repeat(np.arange(len(self)), self.words)

    @cached_property
    def _word_hash(self) -> np.ndarray:
        begin, size = self.word_begin, self.word_end - self.word_begin
        loads = np.ndarray(len(self.joined) - 7, dtype="<u8", buffer=self.joined, strides=(1,))
        hashes = mixed((loads[begin] & _KEPT_BITS[np.minimum(size, 8)]) + size.astype(np.uint64))
        at, rest = np.flatnonzero(size > 8), 8
        while len(at) and rest < LONG_WORD_BYTES:
            part = loads[begin[at] + rest] & _KEPT_BITS[np.minimum(size[at] - rest, 8)]
            hashes[at] = mixed(hashes[at] + part)
            rest += 8
            at = at[size[at] > rest]
        for word in at.tolist():
            hashes[word] = xxhash.xxh3_64_intdigest(self.joined[begin[word] : self.word_end[word]])
        return hashes

    @cached_property
    def running(self) -> np.ndarray:
        """(W + 1,) running sum, of which `span_hashes` are differences."""
        return running_sum(self._word_hash)

    def words_begin_with_ascii_letter(self) -> np.ndarray:
        """(D,) words of which that can be said."""
        begins = (self._buffer[self.word_begin] | 0x20) - np.uint8(ord("a"))
        return _sums(begins < 26, self.word_offset)

    def words_with_ascii_letter(self) -> np.ndarray:
        """(D,) words that hold one."""
        letters = _running_count((self._buffer | 0x20) - np.uint8(ord("a")) < 26)
        return _sums(letters[self.word_end] > letters[self.word_begin], self.word_offset)

    def words_of(self, document: int) -> list[str]:
        """The words of one document."""
        first, end = self.word_offset[document : document + 2]
        borders = zip(self.word_begin[first:end].tolist(), self.word_end[first:end].tolist(), strict=True)
        return [self.joined[begin:stop].decode("utf-8", "surrogatepass") for begin, stop in borders]

    # Lines

    @cached_property
    def feeds(self) -> np.ndarray:
        """(R + 1,) line feeds: raw line r stands between r and r + 1."""
        return np.flatnonzero(self._buffer == LINE_FEED)

    @cached_property
    def _feed_word(self) -> np.ndarray:
        """(R + 1,) the first word after each line feed."""
        return np.searchsorted(self.word_begin, self.feeds)

    @cached_property
    def raw_line(self) -> np.ndarray:
        """(L,) of each line that holds a word, its place among all lines of the buffer."""
        return np.flatnonzero(np.diff(self._feed_word))

    @cached_property
    def line_first_word(self) -> np.ndarray:
        """(L,)."""
        return self._feed_word[self.raw_line]

    @cached_property
    def line_end_word(self) -> np.ndarray:
        """(L,) exclusive."""
        return self._feed_word[self.raw_line + 1]

    @cached_property
    def line_words(self) -> np.ndarray:
        """(L,) words."""
        return self.line_end_word - self.line_first_word

    @cached_property
    def line_begin(self) -> np.ndarray:
        """(L,) the first byte that is not white."""
        return self.word_begin[self.line_first_word]

    @cached_property
    def line_end(self) -> np.ndarray:
        """(L,) after the last byte that is not white."""
        return self.word_end[self.line_end_word - 1]

    @cached_property
    def line_characters(self) -> np.ndarray:
        """(L,) characters, white space around left out."""
        return self._characters_between(self.line_begin, self.line_end)

    @cached_property
    def line_offset(self) -> np.ndarray:
        """(D + 1,) the first line of each document."""
        return np.searchsorted(self.line_begin, self.begin)

    @cached_property
    def lines(self) -> np.ndarray:
        """(D,) lines."""
        return np.diff(self.line_offset)

    @cached_property
    def document_of_line(self) -> np.ndarray:
        """(L,)."""
        return np.repeat(np.arange(len(self)), self.lines)

    @cached_property
    def line_repeats(self) -> np.ndarray:
        """(L,) whether a line has the words of an earlier one of its document."""
        return earlier_equal(span_hashes(self.running, self.line_first_word, self.line_end_word), self.document_of_line)

    @cached_property
    def paragraph_offset(self) -> np.ndarray:
        """(P + 1,) the first line of each paragraph: lines without a blank one between."""
        if not len(self.raw_line):
            return np.zeros(1, dtype=np.int64)
        starts = np.ones(len(self.raw_line), dtype=bool)
        starts[1:] = np.diff(self.raw_line) > 1
        starts[self.line_offset[:-1][self.lines > 0]] = True
        return np.append(np.flatnonzero(starts), len(starts))

    @cached_property
    def document_of_paragraph(self) -> np.ndarray:
        """(P,)."""
        return self.document_of_line[self.paragraph_offset[:-1]]

    @cached_property
    def paragraph_repeats(self) -> np.ndarray:
        """(P,) whether a paragraph has the words of an earlier one of its document."""
        first, last = self.paragraph_offset[:-1], self.paragraph_offset[1:] - 1
        hashes = span_hashes(self.running, self.line_first_word[first], self.line_end_word[last])
        return earlier_equal(hashes, self.document_of_paragraph)

    def last_characters(self) -> np.ndarray:
        """(L,) the code point that ends each line."""
        return _code_points(self._buffer, _backed_up(self._buffer, self.line_end - 1))

    def first_characters(self) -> np.ndarray:
        """(L,) the code point that begins each line."""
        return _code_points(self._buffer, self.line_begin)

    def lines_end_with(self, ending: bytes) -> np.ndarray:
        """(L,) whether a line ends with some bytes."""
        found = self.line_end - self.line_begin >= len(ending)
        for back, byte in enumerate(reversed(ending), start=1):
            found &= self._buffer[self.line_end - back] == byte
        return found

    @cached_property
    def raw_line_offset(self) -> np.ndarray:
        """(D + 1,) the first raw line (of `text.split("\\n")`) of each document."""
        return np.searchsorted(self.feeds, self.begin - 1)

    def raw_line_text(self, raw_line: int) -> str:
        """One of the raw lines as it stands."""
        return self.joined[self.feeds[raw_line] + 1 : self.feeds[raw_line + 1]].decode("utf-8", "surrogatepass")

    # Phrases

    @cached_property
    def _lowered(self) -> bytes:
        return self.joined.lower()

    def places(self, phrases: Iterable[str]) -> np.ndarray:
        """Where any of some phrases begin in the buffer, in ascending order; ASCII letters match in either case."""
        found = []
        for phrase in phrases:
            sought = phrase.encode().lower()
            at = self._lowered.find(sought)
            while at >= 0:
                found.append(at)
                at = self._lowered.find(sought, at + 1)
        return np.array(sorted(found), dtype=np.int64)

    def documents_at(self, places: np.ndarray) -> np.ndarray:
        """(D,) whether a document holds one of some places."""
        return _marked(np.searchsorted(self.begin, places, side="right") - 1, len(self))

    def lines_at(self, places: np.ndarray) -> np.ndarray:
        """(L,) whether a line holds one of some places."""
        return _marked(np.searchsorted(self.line_begin, places, side="right") - 1, len(self.line_begin))

    # Sums

    def per_document(self, of_lines: np.ndarray) -> np.ndarray:
        """(D,) sums over lines."""
        return _sums(of_lines, self.line_offset)

    def kept_lines(self) -> np.ndarray:
        """(L,) whether a line is left."""
        return np.ones(len(self.line_begin), dtype=bool) if self.line_kept is None else self.line_kept

    def _characters_between(self, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
        if self.joined.isascii():
            return end - begin
        return end - begin - (self._continued[end] - self._continued[begin])

    @cached_property
    def _continued(self) -> np.ndarray:
        """(B + 1,) bytes before each that continue a character."""
        return _running_count((self._buffer & 0xC0) == 0x80)


def _mark_wide_spaces(buffer: np.ndarray, white: np.ndarray) -> None:
    """Marks white space beyond ASCII (NEL, no-break, Ogham, the typographic ones, ideographic), in UTF-8."""
    two = np.flatnonzero(buffer == 0xC2)
    two = two[(buffer[two + 1] == 0x85) | (buffer[two + 1] == 0xA0)]
    three = np.flatnonzero((buffer >= 0xE1) & (buffer <= 0xE3))
    first, second, third = buffer[three], buffer[three + 1], buffer[three + 2]
    general = (second == 0x80) & ((third <= 0x8A) | (third == 0xA8) | (third == 0xA9) | (third == 0xAF))
    wide = (first == 0xE2) & (general | ((second == 0x81) & (third == 0x9F)))
    wide |= (first == 0xE1) & (second == 0x9A) & (third == 0x80)
    wide |= (first == 0xE3) & (second == 0x80) & (third == 0x80)
    three = three[wide]
    white[np.concatenate([two, two + 1, three, three + 1, three + 2])] = True


def _backed_up(buffer: np.ndarray, at: np.ndarray) -> np.ndarray:
    """From the last byte of characters to their first."""
    for _ in range(3):
        at = np.where((buffer[at] & 0xC0) == 0x80, at - 1, at)
    return at


def _code_points(buffer: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The characters that begin at some bytes."""
    lead = buffer[at].astype(np.int64)
    if not len(lead) or lead.max() < 0x80:
        return lead
    one, two, three = (buffer[at + more].astype(np.int64) & 0x3F for more in (1, 2, 3))
    return np.select(
        [lead < 0x80, lead < 0xE0, lead < 0xF0],
        [lead, (lead & 0x1F) << 6 | one, (lead & 0x0F) << 12 | one << 6 | two],
        (lead & 0x07) << 18 | one << 12 | two << 6 | three,
    )


def _running_count(found: np.ndarray) -> np.ndarray:
    """(N,) -> (N + 1,) how many were found before each."""
    counts = np.zeros(len(found) + 1, dtype=np.int32 if len(found) < 1 << 31 else np.int64)
    np.cumsum(found, out=counts[1:])
    return counts


def _sums(values: np.ndarray, offset: np.ndarray) -> np.ndarray:
    running = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=running[1:])
    return running[offset[1:]] - running[offset[:-1]]


def _marked(at: np.ndarray, count: int) -> np.ndarray:
    found = np.zeros(count, dtype=bool)
    found[at[at >= 0]] = True
    return found
