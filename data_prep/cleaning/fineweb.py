"""Heuristics of FineWeb, one function each, on the lines that earlier steps left.

Source: Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale", section 3.5. A threshold
that is met removes, as in the paper (at most 0.12, at least 0.1, at least 0.67). The paper's 0.1 of characters in duplicate lines
is 0.01 as the default of its code (datatrove, fineweb_quality_filter.py): the paper's is taken here.
"""

import numpy as np

from data_prep.cleaning.batch import Batch
from data_prep.cleaning.rule import Rule, share
from data_prep.cleaning.running_hash import earlier_equal, span_hashes
from pretrain.data.cleaning_settings import FineWebSettings

SOURCE = "Penedo et al. 2024 (FineWeb), section 3.5"


def few_punctuated_lines(batch: Batch, limits: FineWebSettings) -> np.ndarray:
    """At most 0.12 of lines end in punctuation. Penedo et al. 2024, section 3.5."""
    ends = np.isin(batch.last_characters(), [ord(sign) for sign in limits.punctuation])
    return _share_of_lines(batch, ends) <= limits.punctuated_lines


def repeated_lines(batch: Batch, limits: FineWebSettings) -> np.ndarray:
    """At least 0.1 of characters are in lines that equal an earlier one. Penedo et al. 2024, section 3.5."""
    kept, characters = batch.kept_lines() & batch.alive[batch.document_of_line], batch.line_characters
    repeats = np.zeros(len(kept), dtype=bool)
    hashes = span_hashes(batch.running, batch.line_first_word[kept], batch.line_end_word[kept])
    repeats[kept] = earlier_equal(hashes, batch.document_of_line[kept])
    whole = batch.per_document(characters * kept)
    return share(batch.per_document(characters * repeats), whole) >= limits.duplicate_line_characters


def short_lines(batch: Batch, limits: FineWebSettings) -> np.ndarray:
    """At least 0.67 of lines are shorter than 30 characters. Penedo et al. 2024, section 3.5."""
    return _share_of_lines(batch, batch.line_characters < limits.short_line_characters) >= limits.short_lines


RULES = (
    Rule("few_punctuated_lines", SOURCE, ("punctuated_lines", "punctuation"), removes=few_punctuated_lines),
    Rule("repeated_lines", SOURCE, ("duplicate_line_characters",), removes=repeated_lines),
    Rule("short_lines", SOURCE, ("short_lines", "short_line_characters"), removes=short_lines),
)


def _share_of_lines(batch: Batch, lines: np.ndarray) -> np.ndarray:
    kept = batch.kept_lines()
    return share(batch.per_document(lines & kept), batch.per_document(kept))
