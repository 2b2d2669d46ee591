"""Pairs from two files: line k of one is the translation of line k of the other (as parallel corpora are published).

Planning reads both sides once, to hold their numbers of lines against each other and to cut large pairs of plain files at
the same lines; no more than a block is in memory. A pair with a compressed side is one piece. Lines end at a line feed
alone; U+2028 and the other separators of Unicode are letters here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from math import inf

import numpy as np

from data_prep.items import BadDocument, Item, Part
from data_prep.listing import Found
from data_prep.rows import pair_of
from data_prep.streams import Damaged, is_compressed, lines_of, open_part
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError

BLOCK_BYTES = 1 << 20
LINE_BYTES_PER_CHARACTER = 64
"""How much longer than its longest side a line may be (4 bytes a letter, markup beside it) before it is not even decoded."""


def aligned_parts(sources: Sequence[Found], targets: Sequence[Found], task_bytes: int, setting: str) -> Iterator[Part]:
    """Pieces of pairs of files. Raises DataError for unequal numbers of files, or of lines."""
    if len(sources) != len(targets):
        raise DataError(
            f"{setting}: aligned_text pairs the files of paths and target_paths one by one, but they are {len(sources):,} and "
            f"{len(targets):,}"
        )
    for source, target in zip(sources, targets, strict=True):
        yield from _cut(_whole(source), _whole(target), task_bytes, setting)


def read_aligned(part: Part, corpus: CorpusSettings, prepare: PrepareSettings) -> Iterator[Item]:
    """Pairs of the part. Raises DataError where one side ends before the other, FileNotFoundError, StorageError."""
    assert part.target is not None, "plan_ranges gives both sides"
    longest = LINE_BYTES_PER_CHARACTER * prepare.pair_max_characters
    number = part.first_line - 1
    sides = (_Side(part, longest), _Side(part.target, longest))
    for source, target in zip_longest(sides[0].lines(), sides[1].lines()):
        if sides[0].damage or sides[1].damage:
            break
        number += 1
        if source is None or target is None:
            raise DataError(
                f"{part.name} and {part.target.name} no longer have the same number of lines: one ends before line {number:,}; "
                "they changed while they were being prepared"
            )
        yield _pair(part, number, source, target, prepare)
    for side in sides:
        if side.damage:
            yield BadDocument(side.part.name, number + 1, side.damage, lost="rest_of_file")
            return


class _Side:
    """Lines of one side; a damage ends them and is kept."""

    def __init__(self, part: Part, longest: int) -> None:
        self.part, self.damage = part, ""
        self._longest = longest

    def lines(self) -> Iterator[bytes]:
        """Raises FileNotFoundError, StorageError."""
        at, whole = self.part.start, is_compressed(self.part.path)
        try:
            with open_part(self.part) as file:
                if at:
                    file.seek(at)
                yield from lines_of(file, self._longest, inf if whole else self.part.stop - at)
        except Damaged as error:
            self.damage = str(error)


def _pair(part: Part, number: int, source: bytes, target: bytes, prepare: PrepareSettings) -> Item:
    assert part.target is not None, "see read_aligned"
    longest = LINE_BYTES_PER_CHARACTER * prepare.pair_max_characters
    texts: list[str] = []
    for side, line in ((part, source), (part.target, target)):
        if len(line) > longest:
            return BadDocument(side.name, number, f"a line of more than {longest:,} bytes")
        try:
            texts.append(line.decode())
        except UnicodeDecodeError as error:
            return BadDocument(
                side.name, number, f"not UTF-8: byte {error.start} of the line is 0x{line[error.start]:02x}"
            )
    made = pair_of(texts[0], texts[1], prepare.pair_max_characters)
    return BadDocument(part.name, number, made) if isinstance(made, str) else made


def _whole(file: Found) -> Part:
    return Part(file.path, file.name, 0, file.size, file.size, file.size, file.version)


def _cut(source: Part, target: Part, task_bytes: int, setting: str) -> Iterator[Part]:
    """The pieces of one pair of files."""
    compressed = is_compressed(source.path) or is_compressed(target.path)
    try:
        cuts, source_lines = _cuts(source, float("inf") if compressed else task_bytes)
        offsets, target_lines = _offsets(target, [lines for _, lines in cuts])
    except Damaged:  # told when it is read, with the pairs before it kept
        yield _piece(source, target, (0, source.size), (0, target.size), 1)
        return
    if source_lines != target_lines:
        raise DataError(
            f"{setting}: {source.name} has {source_lines:,} lines and {target.name} has {target_lines:,}; line k of one must be "
            "the translation of line k of the other"
        )
    starts, lines = [0, *(offset for offset, _ in cuts)], [0, *(number for _, number in cuts)]
    ends, target_ends = [*starts[1:], source.size], [*offsets, target.size]
    for place, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        yield _piece(source, target, (start, stop), ([0, *offsets][place], target_ends[place]), lines[place] + 1)


def _piece(source: Part, target: Part, bytes_: tuple[int, int], target_bytes: tuple[int, int], first_line: int) -> Part:
    (start, stop), (target_start, target_stop) = bytes_, target_bytes
    size = stop - start + target_stop - target_start
    other = replace(target, start=target_start, stop=target_stop, size=target_stop - target_start)
    return replace(source, start=start, stop=stop, size=size, target=other, first_line=first_line)


def _cuts(part: Part, piece_bytes: float) -> tuple[list[tuple[int, int]], int]:
    """Places after a line end, about `piece_bytes` apart, as (offset, lines before it); and the number of lines."""
    cuts: list[tuple[int, int]] = []
    at = lines = 0
    wanted, last = piece_bytes, b"\n"
    with open_part(part) as file:
        while block := file.read(BLOCK_BYTES):
            while at + len(block) >= wanted and (end := block.find(b"\n", int(max(wanted - at - 1, 0)))) >= 0:
                cuts.append((at + end + 1, lines + block.count(b"\n", 0, end + 1)))
                wanted = at + end + 1 + piece_bytes
            lines += block.count(b"\n")
            at += len(block)
            last = block[-1:]
    if cuts and cuts[-1][0] == at:
        cuts.pop()
    return cuts, lines + (last != b"\n")


def _offsets(part: Part, numbers: Sequence[int]) -> tuple[list[int], int]:
    """The place after each of some lines (ascending numbers), and the number of lines."""
    offsets: list[int] = []
    at = lines = 0
    last = b"\n"
    with open_part(part) as file:
        while block := file.read(BLOCK_BYTES):
            inside = block.count(b"\n")
            if len(offsets) < len(numbers) and numbers[len(offsets)] <= lines + inside:
                ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
                while len(offsets) < len(numbers) and numbers[len(offsets)] <= lines + inside:
                    offsets.append(at + int(ends[numbers[len(offsets)] - lines - 1]) + 1)
            lines += inside
            at += len(block)
            last = block[-1:]
    return offsets, lines + (last != b"\n")
