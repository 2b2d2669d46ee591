"""The parts of the config that say which documents are dropped as seen before: in the corpus, or in an eval file."""

from typing import Annotated, Literal

from annotated_types import Len
from pydantic import Field

from pretrain.settings import PositiveInt, Settings

Similarity = Annotated[float, Field(gt=0, le=1, strict=False, allow_inf_nan=False)]
"""A Jaccard similarity in (0, 1]."""


class DedupSettings(Settings):
    """Which repeated documents are dropped, over all inputs; the first one in the order of the plan stays."""

    method: Literal["none", "exact", "minhash"] = "exact"
    """`none`: all stay. `exact`: equal texts go (of pairs: those with a side seen before). `minhash`: near-duplicates go as
    well, found by MinHash (Broder 1997) in bands (locality-sensitive hashing), as Lee et al. 2022 do, section 4.2."""
    shingle_words: PositiveInt = 5
    """Words of a shingle; a text is compared as the set of its shingles. Lee et al. 2022 take 5-grams."""
    permutations: PositiveInt = 128
    """Slots of a signature, 4 bytes each for every document. Powers of two are signed fastest."""
    bands: PositiveInt = 21
    """Two documents are compared where one of the bands is equal in both."""
    rows_per_band: PositiveInt = 6
    """Slots of a band. Chance that a pair of similarity J is compared: 1 - (1 - J^rows)^bands, 99.8 % at 0.8 with 21 x 6, 1.5 %
    at 0.3. (16 x 8, common elsewhere, compares 94.7 % at 0.8.)"""
    similarity: Similarity = 0.8
    """Jaccard similarity of two sets of shingles from which on the later document is dropped. Lee et al. 2022 take 0.8."""
    verify: Literal["exact", "signature"] = "exact"
    """How a candidate is judged. `exact`: by the sets of shingles themselves, which reads the candidates again. `signature`: by
    the share of equal slots, an estimate with a standard deviation of 0.035 at 0.8 and 128 slots."""

    @property
    def slots_in_bands(self) -> int:
        """Slots that the bands use; a rule holds it to `permutations` or less."""
        return self.bands * self.rows_per_band


class DecontaminationSettings(Settings):
    """Drops documents that share an n-gram of words with an eval text (Brown et al. 2020, appendix C)."""

    paths: Annotated[tuple[str, ...], Len(min_length=1)] = Field(strict=False)
    """Eval files: .txt, .jsonl, or either with .gz or .zst."""
    fields: Annotated[tuple[str, ...], Len(min_length=1)] = Field(default=("text",), strict=False)
    """Columns of a .jsonl row that hold text, each a text of its own. A dot reaches into an object: `question.stem`."""
    text_unit: Literal["file", "line"] = "file"
    """What one text of a .txt file is. `line` for one question a line: no n-gram then spans two lines."""
    ngram_words: PositiveInt = 13
    """Words that an eval text and a document must share in a row, without case and punctuation. Brown et al. 2020: 13."""
    shortest_words: PositiveInt = 8
    """An eval text shorter than `ngram_words` is looked for as a whole, unless it is shorter than this: "Yes" is in every corpus.
    Brown et al. 2020: 8, for spurious collisions below. Texts left out are counted."""
