"""What reading is about: pieces of files, and what comes out of them."""

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self


@dataclass(frozen=True, slots=True)
class Part:
    """A file, or a piece of one."""

    path: str
    """Absolute path, or the address that fsspec opens."""
    name: str
    """The file as users know it, free of secrets."""
    start: int
    """First byte (lines) or row group (parquet) of the piece."""
    stop: int
    size: int
    """Bytes of the piece."""
    file_bytes: int
    """Bytes of the whole file."""
    version: str
    """Of the content: time of modification, or the store's tag (`etag`)."""
    target: "Part | None" = None
    """The lines of the other side that stand beside these (aligned text)."""
    first_line: int = 1
    """1-based number of the first line of the piece (aligned text)."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `asdict` takes ten times as long."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values if self.target is None else {**values, "target": self.target.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        target = values["target"]
        return cls(**{**values, "target": None if target is None else cls.from_dict(target)})


@dataclass(frozen=True, slots=True)
class FileRange:
    """What one task reads: about `task_bytes` of files, in a fixed order.

    A plan holds every file of the corpus for as long as the preparation lasts, and a file may be a document: parts are kept
    compressed, in 30 to 60 bytes each where Python's own objects take 420.
    """

    index: int
    source: str
    """Which of the corpora it belongs to."""
    size: int
    """Bytes in all."""
    packed: bytes = field(repr=False)
    """The parts, as compressed JSON."""

    @classmethod
    def of(cls, index: int, parts: Sequence[Part], source: str = "main") -> Self:
        """Of its parts."""
        text = json.dumps([part.to_dict() for part in parts], separators=(",", ":"))
        return cls(index, source, sum(part.size for part in parts), zlib.compress(text.encode()))

    @property
    def parts(self) -> tuple[Part, ...]:
        """Unpacked anew at each call, 4 us a part."""
        return tuple(map(Part.from_dict, self._values()))

    def to_dict(self) -> dict[str, Any]:
        """For hashing."""
        return {"index": self.index, "parts": self._values(), "source": self.source}

    def _values(self) -> list[dict[str, Any]]:
        return json.loads(zlib.decompress(self.packed))


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or the two sides of a pair. Raises UnicodeEncodeError for half of a surrogate pair, which no UTF-8 can spell."""

    sides: tuple[str, ...]
    utf8: tuple[bytes, ...] = field(init=False, compare=False, repr=False)
    """The sides, encoded once: for their size, their hash, and the proof that they are text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "utf8", tuple(side.encode() for side in self.sides))

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes."""
        return sum(map(len, self.utf8))


@dataclass(frozen=True, slots=True)
class BadDocument:
    """Something that cannot be read as a document."""

    file: str
    line: int | None
    """1-based line or row; None where the whole file is meant."""
    reason: str
    documents: int = 1
    """How many are lost with it, where that is known: all rows that a damaged row group still had."""
    lost: Literal["document", "rest_of_file"] = "document"
    """Whether all that the file held from here on is lost with it, unseen: more than anybody can count."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A readable document that is left out."""

    reason: str


Item = Document | BadDocument | Dropped
EMPTY = "empty"
