"""gettext message catalogues (.mo): the translated messages of a program, as source-target pairs.

The format is that of GNU gettext's manual, "The Format of GNU MO Files". The standard library's reader is not used: it hands out
single messages on request, and offers no list of them. A catalogue is read with bounds checked, for it may come from anywhere.
"""

from collections.abc import Iterator
from struct import Struct

_HEADER = Struct("IIIII")
_MAGIC = 0x950412DE
_CONTEXT_END = "\4"


class BadCatalogue(ValueError):
    """A file that is no readable catalogue; the message says why."""


def read_catalogue(content: bytes) -> Iterator[tuple[str, str]]:
    """(message, translation) of a catalogue, the header left out; plural forms as pairs of their own.

    Raises BadCatalogue.
    """
    order = {(_MAGIC).to_bytes(4, "little"): "<", (_MAGIC).to_bytes(4, "big"): ">"}.get(content[:4])
    if order is None:
        raise BadCatalogue("no .mo file: the first four bytes are not its mark")
    if len(content) < _HEADER.size:
        raise BadCatalogue("it is cut off")
    _, version, count, originals, translations = Struct(order + "IIIII").unpack_from(content)
    if version >> 16 > 1:
        raise BadCatalogue(f"version {version >> 16} of the format")
    entry = Struct(order + "II")
    if max(originals, translations) + count * entry.size > len(content):
        raise BadCatalogue("it is cut off")
    for index in range(count):
        message, translation = (
            _text(content, *entry.unpack_from(content, table + index * entry.size))
            for table in (originals, translations)
        )
        if message:
            message = message.rpartition(_CONTEXT_END)[2]
            # A plural message holds its two English forms; further forms of the target language have no English of their own.
            yield from zip(message.split("\0"), translation.split("\0"), strict=False)


def _text(content: bytes, length: int, offset: int) -> str:
    if offset + length >= len(content):  # a NUL follows every message
        raise BadCatalogue("a message lies behind its end")
    try:
        return content[offset : offset + length].decode()
    except UnicodeDecodeError as error:
        raise BadCatalogue(f"a message is not UTF-8 (byte {offset + error.start})") from None
