"""Documents for tests: real ones of the running interpreter, and random ones that come near the thresholds."""

import inspect
import json
import random
import re
import textwrap
import unittest
from functools import lru_cache

PROSE = (
    "The harbour lies to the north of the old town, and most of the boats that come in at dawn have been out since midnight.\n"
    "People who live along the quay say that the smell of tar is the first thing they notice when they come home with the tide."
    "\n\n"
    "In winter the boats stay in, and the nets are mended with a patience that visitors find hard to believe.\n"
    "Nobody hurries, since there is nothing to hurry for until the ice is gone and the herring return to the bay."
)
"""English text that every step keeps."""

_TOLD = (
    "the of and to have data model token rain über naïve 数据 слово a 12 # ... … - • {x} “so” end. stop! why? that with"
)
_WORDS = _TOLD.split()


@lru_cache(maxsize=1)
def real_documents() -> list[str]:
    """Docstrings and pieces of source of some modules, up to 3 kB each."""
    found = [PROSE]
    for module in (json, random, re, textwrap, unittest, inspect):
        source = inspect.getsource(module)
        found += [source[at : at + 3000] for at in range(0, min(len(source), 18_000), 3000)]
        found += [
            text for _, member in inspect.getmembers(module) if (text := inspect.getdoc(member)) and len(text) > 200
        ]
    return found


def random_document(seed: int) -> str:
    """Words, lines and paragraphs of which some repeat."""
    draw = random.Random(seed)
    few = draw.sample(_WORDS, draw.randint(3, len(_WORDS)))
    lines: list[str] = []
    for _ in range(draw.randint(0, 30)):
        kind = draw.random()
        if kind < 0.15:
            lines.append(draw.choice(["", "  ", "\u00a0"]))
        elif kind < draw.choice([0.2, 0.5]) and lines:
            lines += lines[-draw.randint(1, 3) :]
        else:
            gap = draw.choice([" ", " ", "  ", "\t", "\u2003"])
            line = gap.join(draw.choice(few if draw.random() < 0.7 else _WORDS) for _ in range(draw.randint(1, 25)))
            lines.append(
                draw.choice(["", "", " ", "- ", "• "]) + line + draw.choice(["", ".", "...", "…", "”", "!", " "])
            )
        if draw.random() < 0.03:
            lines.append(
                draw.choice(
                    ["Please enable JavaScript to go on now.", "We value you. Privacy Policy and so on.", "Lorem Ipsum"]
                )
            )
    return "\n".join(lines)


def random_documents(count: int) -> list[str]:
    return [random_document(seed) for seed in range(count)]
