"""Rows of .jsonl: one JSON object a line, parsed by orjson (RFC 8259 and UTF-8, both strictly).

A plain file is read by ranges of bytes: a line belongs to the range in which it begins. A compressed one is one range, streamed.
Of a key that an object holds twice, the last value counts (as in every common parser); NaN and Infinity are no JSON.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from math import inf
from typing import Any

import orjson

from data_prep.addresses import open_binary
from data_prep.items import BadDocument, Item, Part
from data_prep.rows import DROPPED_EMPTY, Made, object_maker
from data_prep.streams import Damaged, is_compressed, lines_of, open_part, skip_line
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings

LINE_BYTES_PER_DOCUMENT_BYTE = 8
"""How much longer than its longest text a row may be: escapes take up to six bytes a letter, other fields the rest."""
COUNTED_BYTES = 1 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_jsonl(part: Part, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    """Lines that begin within the part. Raises FileNotFoundError, StorageError."""
    make, longest = object_maker(corpus, prepare), LINE_BYTES_PER_DOCUMENT_BYTE * prepare.max_document_bytes
    compressed, first = is_compressed(part.path), 0
    with open_part(part) as file:
        if part.start > 0:
            # A line that begins before the part belongs to the part before, and is skipped here up to its end.
            file.seek(part.start - 1)
            first = part.start - 1 + skip_line(file, part.stop - part.start + 1)
        before = 0 if first == 0 else None
        number = 0
        try:
            for line in lines_of(file, longest, inf if compressed else part.stop - first):
                number += 1
                made = row_of_line(line, longest, make)
                if isinstance(made, str):
                    before = lines_before(part, first) if before is None else before
                    yield BadDocument(part.name, before + number, made)
                else:
                    yield made
        except Damaged as error:
            yield BadDocument(part.name, number + 1, str(error), lost="rest_of_file")


def row_of_line(line: bytes, longest: int, make: Callable[[Any], Made]) -> Made:
    """What a line holds."""
    if len(line) > longest:
        return f"a line of more than {longest:,} bytes"
    line = line.removeprefix(BYTE_ORDER_MARK)
    try:
        return make(orjson.loads(line))
    except orjson.JSONDecodeError as error:
        return _why_no_json(line, error) if line.strip() else DROPPED_EMPTY


def _why_no_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return f"not UTF-8: byte {undecodable.start} of the line is 0x{line[undecodable.start]:02x}"
    if "surrogate" in error.msg:
        return "holds half of a surrogate pair"
    return f"not JSON: {error.msg} (character {error.pos + 1} of the line)"


def lines_before(part: Part, offset: int) -> int:
    """Lines of a file that end before an offset. Only bad lines need their number; it is counted from the nearest known place."""
    known = _COUNTED.setdefault((part.path, part.version), [(0, 0)])
    at, lines = known[bisect_right(known, offset, key=lambda place: place[0]) - 1]
    with open_binary(part.path, part.file_bytes) as file:
        file.seek(at)
        while at < offset and (block := file.read(min(offset - at, COUNTED_BYTES))):
            lines += block.count(b"\n")
            at += len(block)
    place = bisect_right(known, offset, key=lambda place: place[0])
    if known[place - 1][0] != offset:
        known.insert(place, (offset, lines))
    return lines


_COUNTED: dict[tuple[str, str], list[tuple[int, int]]] = {}
"""Of this process: (offset, lines before it), ascending, by file and version. A process counts a file once, not once a range."""
