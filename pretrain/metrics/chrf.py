"""chrF: how much of the characters of a translation and its reference agree.

Popovic 2015, "chrF: character n-gram F-score for automatic MT evaluation": precision and recall of character n-grams of length
1 to 6, white space left out, summed over the corpus, averaged over the lengths, and joined with recall counting beta = 2
times. In percent, and equal to sacrebleu's chrF2, which is not used here because it brings an XML parser along.
"""

from collections import Counter
from collections.abc import Sequence

MAX_LENGTH = 6
BETA = 2.0


def chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2, from 0 to 100."""
    scores = []
    squeezed = [("".join(a.split()), "".join(b.split())) for a, b in zip(translations, references, strict=True)]
    for length in range(1, MAX_LENGTH + 1):
        matches = proposed = wanted = 0
        for translation, reference in squeezed:
            ours, theirs = _ngrams(translation, length), _ngrams(reference, length)
            matches += (ours & theirs).total()
            # As in chrF++ and sacrebleu: against a reference too short for the length nothing is proposed.
            proposed += ours.total() if theirs else 0
            wanted += theirs.total()
        if proposed and wanted:
            scores.append((matches / proposed, matches / wanted))
    if not scores:
        return 0.0
    precision = sum(score[0] for score in scores) / len(scores)
    recall = sum(score[1] for score in scores) / len(scores)
    joined = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / joined if joined else 0.0


def _ngrams(text: str, length: int) -> Counter[str]:
    return Counter(text[start : start + length] for start in range(len(text) - length + 1))
