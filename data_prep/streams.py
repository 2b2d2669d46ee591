"""Streams of bytes: plain, gzip and zstandard, by the ending of the name, and lines of bounded length.

Compressed files are inflated in small pieces, so that little of what precedes a damage is lost with it, and a file of any size
takes a few hundred kilobytes, and the window that it asks for. Python's own gzip module is not used: it drops what it had when it
meets damage.
"""

import io
import zlib
from collections.abc import Iterator
from math import inf
from typing import Any, BinaryIO, Protocol

import zstandard

from data_prep.addresses import open_binary
from data_prep.items import Part

COMPRESSED = (".gz", ".zst")
PIECE_BYTES = 8 << 10
"""Compressed bytes that are inflated at once."""
INFLATED_BYTES = 1 << 20
"""Most bytes of one step of gzip: a piece of zeros inflates a thousandfold."""
ZSTD_STEP_BYTES, ZSTD_SMALLEST_STEP_BYTES = 512, 16
"""zstandard's library has no bound for what a step gives: steps are small, and smaller where much comes out of them."""
ZSTD_WINDOW_BYTES = 1 << 31
"""What `zstd --long=31` asks for, as large collections of .jsonl.zst do; the library's own bound of 128 MB calls them damaged."""
BUFFER_BYTES = 256 << 10
SKIPPED_BYTES = 256 << 10
REPLAY_BYTES = 16
FETCH_AGAIN = "what comes behind is lost: fetch the file again"
_KIND = {".gz": "gzip", ".zst": "zstd"}


class Damaged(Exception):
    """A compressed file that is cut or altered; the message says how."""


def suffix_of(name: str) -> str:
    """`.gz`, `.zst`, or nothing."""
    return next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")


def is_compressed(name: str) -> bool:
    """Whether the name ends as that of a compressed file does."""
    return suffix_of(name) != ""


def open_part(part: Part) -> BinaryIO:
    """The content of a part's whole file, inflated where it is compressed.

    Reading it raises Damaged, FileNotFoundError, StorageError.
    """
    file = open_binary(part.path, part.file_bytes)
    suffix = suffix_of(part.path)
    if not suffix:
        return file
    return io.BufferedReader(_Inflated(file, _Gzip() if suffix == ".gz" else _Zstandard(), _KIND[suffix]), BUFFER_BYTES)


def lines_of(file: BinaryIO, longest: int, room: float = inf) -> Iterator[bytes]:
    """Lines, each with its end, that begin within the next `room` bytes; of one of more than `longest` only the beginning."""
    readline, taken = file.readline, 0
    while taken < room and (line := readline(longest + 1)):
        taken += len(line)
        yield line
        if len(line) > longest and not line.endswith(b"\n"):
            taken += skip_line(file, room - taken)


def skip_line(file: BinaryIO, room: float = inf) -> int:
    """Reads up to the end of a line, or `room` bytes: a file of one endless line must not be read once for every range of it."""
    skipped = 0
    while skipped < room and (piece := file.readline(int(min(room - skipped, SKIPPED_BYTES)))):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


class _Codec(Protocol):
    """Inflates a stream of one or several members."""

    within: bool
    """Whether a member is begun and not ended."""

    def inflate(self, piece: bytes) -> Iterator[bytes]:
        """What a piece gives, all of it before an error. Raises Damaged."""
        ...


class _Gzip:
    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.within = False

    def inflate(self, piece: bytes) -> Iterator[bytes]:
        """See _Codec."""
        while piece:
            if not self.within:
                piece = piece.lstrip(b"\0")  # tapes pad with zeros
                if not piece:
                    return
                self._member, self.within = zlib.decompressobj(wbits=31), True
            before = self._member.copy()
            try:
                yield self._member.decompress(piece, INFLATED_BYTES)
            except zlib.error as error:
                yield from self._up_to_damage(before, piece)
                raise Damaged(_plain(error)) from None
            piece = self._member.unconsumed_tail
            if self._member.eof:
                piece, self.within = self._member.unused_data, False

    @staticmethod
    def _up_to_damage(member: Any, piece: bytes) -> Iterator[bytes]:
        """The same piece again in steps of some bytes: the library gives nothing of a call that fails."""
        for at in range(0, len(piece), REPLAY_BYTES):
            try:
                yield member.decompress(piece[at : at + REPLAY_BYTES])
            except zlib.error:
                return


class _Zstandard:
    def __init__(self) -> None:
        self._member = _zstandard_member()
        self.within = False
        self._step = ZSTD_STEP_BYTES

    def inflate(self, piece: bytes) -> Iterator[bytes]:
        """See _Codec."""
        while piece:
            if not self.within:
                self._member, self.within = _zstandard_member(), True
            step, piece = piece[: self._step], piece[self._step :]
            try:
                block = self._member.decompress(step)
            except zstandard.ZstdError as error:
                raise Damaged(_plain(error)) from None
            self._step = ZSTD_SMALLEST_STEP_BYTES if len(block) > INFLATED_BYTES // 4 else ZSTD_STEP_BYTES
            yield block
            if self._member.eof:
                piece, self.within = self._member.unused_data + piece, False


def _zstandard_member() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES).decompressobj()


def _plain(error: Exception) -> str:
    """The library's cause without its preamble."""
    return str(error).rpartition(": ")[2]


class _Inflated(io.RawIOBase):
    """The content of a compressed file."""

    def __init__(self, file: BinaryIO, codec: _Codec, kind: str) -> None:
        self._file, self._codec, self._kind = file, codec, kind
        self._blocks = self._inflate()
        self._block = memoryview(b"")

    def _inflate(self) -> Iterator[bytes]:
        taken = 0
        try:
            while piece := self._file.read(PIECE_BYTES):
                yield from self._codec.inflate(piece)
                taken += len(piece)
        except Damaged as error:
            where = f"within {PIECE_BYTES:,} bytes from {taken:,}"
            raise Damaged(f"damaged {self._kind} file: {error}, {where}; {FETCH_AGAIN}") from None
        if self._codec.within:
            raise Damaged(f"damaged {self._kind} file: it is cut after {taken:,} bytes; {FETCH_AGAIN}")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises Damaged once all before the damage was read."""
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        size = min(len(buffer), len(self._block))
        buffer[:size] = self._block[:size]
        self._block = self._block[size:]
        return size

    def close(self) -> None:
        """Closes the file as well."""
        self._file.close()
        super().close()
