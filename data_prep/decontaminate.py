"""Decontamination: which documents hold a piece of an eval file.

A document is hit where it shares `ngram_words` words in a row with an eval text, without case, punctuation and spacing (Brown et
al. 2020, "Language models are few-shot learners", appendix C; 13 words, 8 at least). An eval text of fewer words is looked for as
a whole; one of fewer than `shortest_words` is not looked for, and counted in `too_short`. Unlike there, the whole document is
dropped, not 200 characters around the match, and no n-gram is excused for being frequent: eval files that hold a licence or a
common quotation drop every document that holds it, so look at the report.

Every window of every document is hashed in bulk and looked up in a table of bits; the few that pass are compared as text, so a
collision of hashes drops nothing. An exact automaton over strings (Aho-Corasick) needs no confirmation, but costs Python calls
a word; a Bloom filter alone drops innocents.

Costs: 24 bytes an n-gram of the eval files, at least 64 kB and at most 64 MB for the table, and the eval texts.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import xxhash
import zstandard

from data_prep import shingles
from data_prep.jsonl import BYTE_ORDER_MARK
from data_prep.rows import field_of
from data_prep.shingles import Words, words_of
from pretrain.data.dedup_settings import DecontaminationSettings
from pretrain.errors import DataError

VERSION = f"1-{shingles.VERSION}"
SUFFIXES = (".txt", ".jsonl")
_TABLE_BITS = (16, 26)
"""log2 of the least and the most entries of the table."""


@dataclass(frozen=True)
class Hit:
    """What a document shares with an eval file."""

    file: str
    ngram: str
    """The words shared, folded."""

    def __str__(self) -> str:
        return f"{self.file}: {self.ngram}"


@dataclass(frozen=True)
class _Needles:
    """What is looked for: some words of the eval texts, found by the hash of their first `width` words."""

    width: int
    hashes: np.ndarray
    """(G,) uint64, ascending."""
    places: np.ndarray
    """(G,) int64: the word of the eval texts at which each begins."""
    sizes: np.ndarray
    """(G,) int64: its words, `width` or more."""
    table: np.ndarray
    """(2^bits,) bool: whether any hash begins with these bits."""

    @classmethod
    def of(cls, words: Words, width: int, places: np.ndarray, sizes: np.ndarray) -> "_Needles":
        """Those at some places of the eval texts."""
        hashes = words.windows(width)[places]
        order = np.argsort(hashes, kind="stable")
        least, most = _TABLE_BITS
        bits = min(max(len(hashes).bit_length() + 5, least), most)
        table = np.zeros(1 << bits, dtype=bool)
        table[hashes >> np.uint64(64 - bits)] = True
        return cls(width, hashes[order], places[order], sizes[order], table)

    def found(self, windows: np.ndarray) -> np.ndarray:
        """Positions of the windows whose hash is among ours."""
        shift = np.uint64(65 - len(self.table).bit_length())
        maybe = np.flatnonzero(self.table[windows >> shift])
        at = np.minimum(np.searchsorted(self.hashes, windows[maybe]), len(self.hashes) - 1)
        return maybe[self.hashes[at] == windows[maybe]]

    def of_hash(self, value: int) -> Iterator[tuple[int, int]]:
        """(place, size) of all with a hash."""
        begin, end = (int(np.searchsorted(self.hashes, np.uint64(value), side)) for side in ("left", "right"))
        yield from zip(self.places[begin:end].tolist(), self.sizes[begin:end].tolist(), strict=True)


class Decontaminator:
    """Finds documents that share words with eval files; built in each process from the settings, or pickled.

    Raises:
        DataError: an eval file that is missing, damaged, empty, of another kind, or without one text that is long enough.
    """

    def __init__(self, settings: DecontaminationSettings) -> None:
        digest = xxhash.xxh3_128(json.dumps([VERSION, settings.model_dump(exclude={"paths"})], sort_keys=True).encode())
        self._settings = settings
        texts: list[str] = []
        self._ends: list[int] = []
        for path in settings.paths:
            content = _content(path)
            digest.update(f"{Path(path).name}\0{len(content)}\0".encode() + content)
            texts += _texts(path, content, settings)
            self._ends.append(len(texts))
        self._eval = words_of(texts)
        self._needles = self._all_needles()
        sizes = np.diff(self._eval.first)
        self.too_short = int(np.count_nonzero(sizes < self._shortest))
        """Eval texts that are not looked for."""
        self.identity: str = digest.hexdigest()
        """Changes with whatever may change a hit: settings, eval files, and how words are cut."""
        self._refuse_useless_files(sizes)

    def hit(self, text: str) -> str | None:
        """The eval file and the words that a document shares with it; None where it shares none."""
        found = self.hits([text])[0]
        return None if found is None else str(found)

    def hits(self, texts: Sequence[str]) -> list[Hit | None]:
        """The first hit of each document, by place."""
        found: list[Hit | None] = []
        for batch in shingles.batches(texts):
            found += self._hits_of_batch(words_of(texts[batch]))
        return found

    @property
    def _shortest(self) -> int:
        return min(self._settings.shortest_words, self._settings.ngram_words)

    def _hits_of_batch(self, words: Words) -> list[Hit | None]:
        first: dict[int, tuple[int, Hit]] = {}
        for needles in self._needles:
            windows = words.windows(needles.width)
            positions = needles.found(windows)
            documents = np.searchsorted(words.first, positions, side="right") - 1
            for position, document in zip(positions.tolist(), documents.tolist(), strict=True):
                if document in first and first[document][0] <= position:
                    continue
                left = int(words.first[document + 1]) - position
                hit = self._confirmed(needles.of_hash(int(windows[position])), words, position, left)
                if hit is not None:
                    first[document] = (position, hit)
        return [first[at][1] if at in first else None for at in range(len(words.first) - 1)]

    def _confirmed(self, needles: Iterable[tuple[int, int]], words: Words, position: int, left: int) -> Hit | None:
        """The hit, if the words are the same and not their hashes alone. `left` words of the document remain."""
        for place, size in needles:
            if size <= left and words.words(position, size) == self._eval.words(place, size):
                text = int(np.searchsorted(self._eval.first, place, side="right")) - 1
                file = int(np.searchsorted(self._ends, text, side="right"))
                return Hit(self._settings.paths[file], words.words(position, size).decode())
        return None

    def _all_needles(self) -> list[_Needles]:
        """The n-grams of the length asked, and the texts that are shorter."""
        first, width = self._eval.first, self._settings.ngram_words
        sizes = np.diff(first)
        counts = np.maximum(sizes - width + 1, 0)
        places = np.repeat(first[:-1] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        places = places[np.sort(np.unique(self._eval.windows(width)[places], return_index=True)[1])]
        needles = [_Needles.of(self._eval, width, places, np.full(len(places), width))]
        short = (sizes >= self._shortest) & (sizes < width)
        needles.append(_Needles.of(self._eval, self._shortest, first[:-1][short], sizes[short]))
        return [some for some in needles if len(some.hashes)]

    def _refuse_useless_files(self, sizes: np.ndarray) -> None:
        for path, begin, end in zip(self._settings.paths, [0, *self._ends], self._ends, strict=False):
            if not (sizes[begin:end] >= self._shortest).any():
                raise DataError(
                    f"decontamination: {path} has no text of decontamination.shortest_words={self._shortest} words or more, "
                    "so nothing of it would be found; lower that, or leave the file out"
                )


def _content(path: str) -> bytes:
    """The bytes of an eval file, unpacked."""
    if _kind(path) not in SUFFIXES:
        raise DataError(
            f"decontamination.paths: {path} is no eval file that can be read: {' or '.join(SUFFIXES)}, or these with .gz or .zst"
        )
    try:
        content = Path(path).expanduser().read_bytes()
        if path.endswith(".gz"):
            content = gzip.decompress(content)
        elif path.endswith(".zst"):
            content = _without_zstandard(content)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(
            f"decontamination.paths: {path} cannot be read ({error}); correct the path or the file"
        ) from error
    if not content.strip():
        raise DataError(f"decontamination.paths: {path} is empty; leave it out, or fetch it again")
    return content


def _kind(path: str) -> str:
    return Path(path.removesuffix(".gz").removesuffix(".zst")).suffix


def _without_zstandard(content: bytes) -> bytes:
    """All frames; the library's own reader ends a truncated one without a word."""
    plain = b""
    while content:
        frame = zstandard.ZstdDecompressor().decompressobj()
        plain += frame.decompress(content)
        if not frame.eof:
            raise EOFError("the last frame is cut short")
        content = frame.unused_data
    return plain


def _texts(path: str, content: bytes, settings: DecontaminationSettings) -> Iterator[str]:
    if _kind(path) == ".jsonl":
        yield from _row_texts(path, content, settings.fields)
        return
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"decontamination.paths: {path} is not UTF-8 at byte {error.start}; convert it") from error
    yield from [text] if settings.text_unit == "file" else filter(str.strip, text.splitlines())


def _row_texts(path: str, content: bytes, fields: Sequence[str]) -> Iterator[str]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line.removeprefix(BYTE_ORDER_MARK))
        except orjson.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not a row of JSON ({error}); correct or remove it") from error
        for name in fields:
            value = field_of(row, name)
            if not isinstance(value, str):
                raise DataError(
                    f"{path}:{number}: no text in the column {name!r}; name columns that every row has in decontamination.fields"
                )
            yield value
