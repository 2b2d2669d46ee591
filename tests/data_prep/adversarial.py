"""Texts on which tokenizers are known to differ, and text that no tokenizer here was trained on."""

import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PARTS = [
    *("\U0001f642", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea"),
    *("e\u0301", "\u0323\u0307", "\u200b", "\u200e", "\ufeff", "\u00ad", "\u0085", "\u2028", "\u3000", "\u00a0"),
    *("\0", "\x07", "\x1b[0m", "\x7f", "\\ud800\\udfff", "\ufffd", "\ufffe", "\U0010ffff", "\ue000"),
    *("<|endoftext|>", "<|target|>", "<|padding|>", "<|begin_of_text|>", "<|", "|>"),
    *("\u0378", "\u088f", "\u0c5c", "\ua7ce", "\U00010940", "\U000323b0", "\U00033479", "\U0003ffff"),
    *("\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd"),
    *("\ud55c\uad6d\uc5b4", "\u1112\u1161\u11ab", "\u6f22\u5b57", "\u0e44\u0e17\u0e22"),
    *("I'll", "WE'VE", "it'\u017f", "'S", "\u2019s", "''", "\u212a", "\ufb06", "\u0130", "\u00df"),
    *("0", "123456", "\u0661\u0662", "\u00bd", "\u2167", "\u00b2"),
    *(" ", "  ", "\t", "\n", "\r\n", "\r", "\n\n\n", " \n ", "\v\f"),
    *("a", "Word", "snake_case", "d\u00e9j\u00e0", ".", "...", "->", "#!", "$%&"),
]  # fmt: skip


def adversarial(count: int) -> Iterator[str]:
    """Different strings of a few odd parts each; a tenth have a long run of one, a tenth code points drawn from all."""
    drawn = random.Random(0)
    seen: set[str] = set()
    while (number := len(seen)) < count:
        parts = drawn.choices(PARTS, k=drawn.randint(1, 9))
        if number % 10 == 0:
            parts.insert(drawn.randrange(len(parts)), drawn.choice(PARTS) * drawn.randint(20, 400))
        if number % 10 == 1:
            points = [drawn.choice((drawn.randrange(0xD800), drawn.randrange(0xE000, 0x110000))) for _ in range(20)]
            parts += [chr(point) for point in points]
        joined = "".join(parts)
        if joined not in seen:
            seen.add(joined)
            yield joined


def unseen_text(size: int, step: int = 1) -> list[str]:
    """About `size` bytes of the interpreter's own documents: every `step`-th Python or text file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    texts: list[str] = []
    total = 0
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.txt")])[::step]:
        content = path.read_bytes()
        if "site-packages" not in path.parts and total < size:
            texts.append(content.decode(errors="replace"))
            total += len(content)
    return texts
