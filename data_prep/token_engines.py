"""Engines that turn text into ids: Hugging Face's `tokenizers`, which says what is right, and faster ones that agree with it.

    engines = choose_engine(content_of_tokenizer_json, "auto")
    engines.fast.encode(texts)        # as engines.reference.encode(texts)

`gigatoken` (Rust, 30 to 90 times as fast) and `tiktoken` (4 times) cut text into words with other regular expression engines than
Hugging Face. What can differ is handled, not hoped for:

- Their tables of Unicode are of another year, so that a few thousand code points are letters to one and unassigned to the
  other. `CodePoints` asks both about every code point that comes up, once, and a text that holds a disputed one goes to
  Hugging Face. A table made from `unicodedata` would not do: it is of a third year. A table in this file would be right for
  one version of each.
- Added tokens that are not special (Qwen's `<tool_call>`) are found in text by Hugging Face even where special ones are not:
  such texts go there too.
- A probe of adversarial strings and of the vocabulary is encoded by both before an engine is used; `Encoder` audits while it
  works.

Costs: 0.2 to 1 s for a tokenizer and process (kept), 50 us for a new code point, a few per cent of the speed on text that
is not ASCII. Not taken: tokie, kitoken and budtiktok (their ids differ), engines of our own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import compress
from typing import Any, Protocol

import numpy as np
import orjson
from tokenizers import Tokenizer, pre_tokenizers

from pretrain.data.tokenizer_settings import EngineName
from pretrain.errors import DataError

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""Published with GPT-2; what `ByteLevel` stands for in a tokenizer.json."""
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Published with Llama 3's tokenizer."""
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
"""Published with Qwen 2's tokenizer: Llama 3's, with digits one by one."""
BYTES = 256
CODE_POINTS = 0x110000
_ASCII = bytes(range(128))
PROBED_TOKENS = 2000
RENEWED_AFTER = 64_000_000
"""Characters after which gigatoken is made anew (0.03 s for 8,192 tokens, 0.05 for 32,768): it keeps every word that it has seen.
At four times as many, a process grew by 27 MiB within 600 MB of source code, and was no faster."""


class Unfit(Exception):
    """An engine cannot serve a tokenizer; the message says why."""


class Engine(Protocol):
    """Text to ids, without special tokens."""

    name: str

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        """(T,) uint32 for each text; what looks like a special token is text. `utf8` are the same texts, where at hand."""
        ...


class HuggingFace:
    """The reference."""

    name = "hf"

    def __init__(self, content: str) -> None:
        self.tokenizer = Tokenizer.from_str(content)
        self.tokenizer.encode_special_tokens = True
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        """As Engine."""
        try:
            encoded = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # of a lone surrogate, as a complaint about the argument's type
            _ = [text.encode() for text in texts]
            raise
        return [np.array(item.ids, dtype=np.uint32) for item in encoded]


class Gigatoken:
    """The fastest. It knows a list of patterns, and raises at others. One thread: processes are the caller's business."""

    name = "gigatoken"

    def __init__(self, content: str) -> None:
        try:
            from gigatoken import Tokenizer as Fast
        except ImportError as error:
            raise Unfit(f"is not installed ({error})") from None
        # Without added tokens none can be found in text; the ids of all others stay.
        bare = orjson.dumps({**orjson.loads(content), "added_tokens": []}).decode()
        self._make = lambda: Fast.from_json(bare)
        self._tokenizer, self._characters = self._make(), 0

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        """As Engine."""
        self._characters += sum(map(len, texts))
        if self._characters > RENEWED_AFTER:
            del self._tokenizer  # two are never held
            self._tokenizer, self._characters = self._make(), 0
        encode = self._tokenizer.encode  # on the calling thread; np.asarray takes numpy and awkward arrays
        # It takes bytes as they are, and makes them of a str otherwise.
        return [np.asarray(encode(text), dtype=np.uint32) for text in utf8 or [text.encode() for text in texts]]


class Tiktoken:
    """The next: any single pattern, with ranks rebuilt from the vocabulary and merges of the tokenizer.json.

    Its merges are of byte strings, Hugging Face's of pairs. For a trained vocabulary both give the same; tokens that Hugging
    Face's merges cannot reach are refused here, and the rest is for the probe and the audit.
    """

    name = "tiktoken"

    def __init__(self, content: str) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise Unfit(f"is not installed ({error})") from None
        tree = orjson.loads(content)
        pattern = pattern_of(tree)
        if pattern is None:
            raise Unfit("takes byte-level tokenizers with one pattern and no added space")
        ranks, ids = _ranks(tree)
        self._ids = np.array(ids, dtype=np.uint32)
        self._lengths = np.array([len(token) for token in ranks])
        self._encoding = tiktoken.Encoding("tokenizer.json", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._reference = HuggingFace(content)

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        """As Engine."""
        return [self._encode(text) for text in texts]

    def _encode(self, text: str) -> np.ndarray:
        try:
            ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
        except BaseException as error:
            _raise_what_is_ours(error)  # a run of a million spaces exceeds its regex's limit
        else:
            # It drops what the pattern does not match; Hugging Face keeps it.
            if self._lengths[ranks].sum() == len(text.encode()):
                return self._ids[ranks]
        return self._reference.encode([text])[0]


def pattern_of(tree: dict[str, Any]) -> str | None:
    """The one expression by which a tokenizer.json cuts text into words; None where it is more than that."""
    steps = tree.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return None
    by_regex = steps[-1].get("use_regex", True)
    if len(steps) == 1:
        return GPT2_PATTERN if by_regex else None
    first = steps[0]
    alone = len(steps) == 2 and first.get("type") == "Split" and not by_regex
    if not alone or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    return first.get("pattern", {}).get("Regex")


def ends_words_at_lines(tree: dict[str, Any]) -> bool:
    """Whether a tokenizer.json cuts text by one of the patterns whose words' ends `data_prep.audit` knows, as it stands."""
    plain = tree.get("normalizer") is None and all(token["special"] for token in tree.get("added_tokens", []))
    return plain and pattern_of(tree) in (GPT2_PATTERN, LLAMA3_PATTERN, QWEN2_PATTERN)


def _letters() -> dict[str, int]:
    """The letter by which a byte-level vocabulary spells each byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(BYTES) if byte not in set(plain)]
    letters = {chr(byte): byte for byte in plain} | {chr(BYTES + at): byte for at, byte in enumerate(others)}
    assert set(letters) == set(pre_tokenizers.ByteLevel.alphabet())
    return letters


def _ranks(tree: dict[str, Any]) -> tuple[dict[bytes, int], list[int]]:
    """Ranks of byte strings in the order of merges, and the id of each rank. Raises Unfit."""
    model = tree["model"]
    odd = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model["type"] != "BPE" or any(model.get(name) for name in odd):
        raise Unfit("takes plain BPE models alone")
    vocabulary, letters = model["vocab"], _letters()
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    names = list(dict.fromkeys([*letters, *("".join(pair) for pair in pairs)]))
    added = {token["content"] for token in tree.get("added_tokens", [])}
    lost = [name for name in names if name not in vocabulary] or list(set(vocabulary) - set(names) - added)
    if lost:
        raise Unfit(f"needs each token to be a byte or the result of a merge, unlike {lost[0]!r}")
    if not model.get("ignore_merges"):
        bare = HuggingFace(
            orjson.dumps({**tree, "pre_tokenizer": None, "normalizer": None, "added_tokens": []}).decode()
        )
        unreached = [n for n, ids in zip(names, bare.encode(names), strict=True) if len(ids) != 1]
        if unreached:
            raise Unfit(f"would make the token {unreached[0]!r}, which the merges never reach")
    spelled = [bytes(letters[letter] for letter in name) for name in names]
    return {token: rank for rank, token in enumerate(spelled)}, [vocabulary[name] for name in names]


class CodePoints:
    """Which code points two engines put into different classes, found by asking both, once for each.

    They are asked with a vocabulary in which any byte merges with any of a few neighbours, so that the ids show where words
    end. Raises Unfit where they disagree on ASCII.
    """

    UNKNOWN, AGREED, DISPUTED = 0, 1, 2

    def __init__(self, tree: dict[str, Any], make: Callable[[str], Engine]) -> None:
        letters = list(_letters())
        spelled = {byte: letter for letter, byte in _letters().items()}
        near = [spelled[ord(x)] for x in "aA1! '\n"]
        merges = [[x, y] for x in near for y in letters] + [[x, y] for x in letters for y in near if x not in near]
        names = [*letters, *("".join(merge) for merge in merges)]
        model = {"type": "BPE", "vocab": {name: at for at, name in enumerate(names)}, "merges": merges}
        content = orjson.dumps({**tree, "added_tokens": [], "post_processor": None, "model": model}).decode()
        self._both = (HuggingFace(content), make(content))
        self._state = np.zeros(CODE_POINTS, dtype=np.uint8)
        self._learn(np.arange(0x250))
        if (self._state[:128] != self.AGREED).any():
            raise Unfit("disagrees with Hugging Face's tokenizers on ASCII")
        self._all_agreed = int(np.argmax(self._state != self.AGREED))
        """Below it, all are known to be agreed on."""

    def agreed(self, utf8: bytes) -> bool:
        """Whether the engines agree on each code point of a text that is not all ASCII."""
        # Most of most texts is ASCII, and its octets go faster than code points are made of them.
        points = np.frombuffer(utf8.translate(None, _ASCII).decode().encode("utf-32-le"), "<u4")
        if points.max() < self._all_agreed:  # most text of European languages
            return True
        state = self._state.take(points)
        if state.min() == self.UNKNOWN:
            self._learn(np.unique(points[state == self.UNKNOWN]))
            state = self._state.take(points)
        return bool(state.max() == self.AGREED)

    def _learn(self, points: np.ndarray) -> None:
        texts = [_around(chr(point)) for point in points.tolist()]
        right, given = (engine.encode(texts) for engine in self._both)
        same = [np.array_equal(a, b) for a, b in zip(right, given, strict=True)]
        self._state[points] = np.where(same, self.AGREED, self.DISPUTED)


def _around(c: str) -> str:
    """A character beside one of each class; neighbours are doubled so that both of its sides show."""
    return f"aa{c}AA{c}11{c}!!{c}  {c}''{c}aa\n\n{c}\n 1'{c}a"


class Guarded:
    """A fast engine that leaves to the reference what it is known to do otherwise."""

    def __init__(self, fast: Engine, reference: HuggingFace, code_points: CodePoints, matched: tuple[str, ...]) -> None:
        self.name = fast.name
        self._fast, self._reference, self._code_points, self._matched = fast, reference, code_points, matched

    def encode(self, texts: Sequence[str], utf8: Sequence[bytes] | None = None) -> list[np.ndarray]:
        """As Engine."""
        utf8 = utf8 or [text.encode() for text in texts]
        own = [self._agreed(text, octets) for text, octets in zip(texts, utf8, strict=True)]
        if all(own):
            return self._fast.encode(texts, utf8)
        fast = iter(self._fast.encode(list(compress(texts, own)), list(compress(utf8, own))))
        slow = iter(self._reference.encode([text for text, mine in zip(texts, own, strict=True) if not mine]))
        return [next(fast if mine else slow) for mine in own]

    def _agreed(self, text: str, utf8: bytes) -> bool:
        if any(token in text for token in self._matched):
            return False
        return text.isascii() or self._code_points.agreed(utf8)


ENGINES: dict[str, Callable[[str], Engine]] = {"gigatoken": Gigatoken, "tiktoken": Tiktoken}
"""Fast engines by name, the fastest first."""


@dataclass(frozen=True)
class Engines:
    """What encodes a tokenizer's text."""

    fast: Engine
    """In use; the reference where no faster one serves."""
    reference: HuggingFace
    notes: tuple[str, ...]
    """Why not a faster one."""
    cuttable: bool
    """Whether `ends_words_at_lines`."""


@lru_cache(maxsize=4)
def choose_engine(content: str, name: EngineName) -> Engines:
    """The engine of a name, or the fastest that serves.

    Args:
        content: of a tokenizer.json.
        name: of TokenizerSettings.engine.

    Raises:
        DataError: the named engine does not serve.
    """
    reference = HuggingFace(content)
    cuttable = ends_words_at_lines(orjson.loads(content))
    notes = []
    for candidate in {"auto": list(ENGINES), "hf": []}.get(name, [name]):
        try:
            return Engines(_guarded(candidate, content, reference), reference, tuple(notes), cuttable)
        except BaseException as error:
            _raise_what_is_ours(error)
            notes.append(f"{candidate} {error}" if isinstance(error, Unfit) else f"{candidate} fails ({error})")
    if name not in ("auto", "hf"):
        raise DataError(f"data.prepare.tokenizer.engine={name}: {notes[0]}; set data.prepare.tokenizer.engine: auto")
    return Engines(reference, reference, tuple(notes), cuttable)


def _raise_what_is_ours(error: BaseException) -> None:
    """Rust's panics arrive as a BaseException of no public type; what else is no Exception goes on its way."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _guarded(name: str, content: str, reference: HuggingFace) -> Guarded:
    """A fast engine that has passed the probe. Raises Unfit, or what the engine raises."""
    tree = orjson.loads(content)
    if tree.get("normalizer") is not None:
        raise Unfit(f"takes no normalizer, which the tokenizer has ({tree['normalizer'].get('type')})")
    make = ENGINES[name]
    matched = tuple(token["content"] for token in tree.get("added_tokens", []) if not token["special"])
    engine = Guarded(make(content), reference, CodePoints(tree, make), matched)
    texts = probe(tree)
    for text, right, given in zip(texts, reference.encode(texts), engine.encode(texts), strict=True):
        if not np.array_equal(right, given):
            raise Unfit(f"disagrees with Hugging Face's tokenizers on {text[:80]!r}")
    return engine


def probe(tree: dict[str, Any]) -> list[str]:
    """Strings on which engines are known to differ, and a share of the vocabulary."""
    letters = _letters()
    names = list(tree["model"]["vocab"])[:: max(len(tree["model"]["vocab"]) // PROBED_TOKENS, 1)]
    spelled = [bytes(letters[x] for x in name) for name in names if set(name) <= letters.keys()]
    tokens = [token.decode(errors="ignore") for token in spelled]
    added = [token["content"] for token in tree.get("added_tokens", [])]
    edges = ["", "a", " ", "1", "\n", "'", "\r\n", "\u00a0", "é", "!"]
    odd = [f"{x}{y}{z}" for x in edges for y in edges for z in edges]
    runs = [x * n for x in " \n\t1a.-é" for n in (2, 3, 4, 17, 600)]
    words = [
        "I'LL we've it'\u017f 'S'",
        "x  \ny",
        "\0\x07\x1b",
        "e\u0301\u0323",
        "\U0001f469\u200d\U0001f469\u200d\U0001f467\U0001f3f3\ufe0f\u200d\U0001f308",
        "한국어 العربية עברית ไทย",
        "\\ud800",
    ]
    joined = ["".join(tokens), " ".join(tokens)]
    return [*tokens, *added, *(f"a{token} b" for token in added), *odd, *runs, *words, *joined]
