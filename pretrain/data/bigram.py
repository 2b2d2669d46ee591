"""A bigram model with absolute discounting: the baseline that a transformer must beat to have learned more than neighbours.

    P(w | c) = max(n(c w) - d, 0) / n(c)  +  d * N(c) / n(c) * P(w)

N(c) is the number of different tokens seen after c; P(w) is the unigram model, discounted in the same manner towards the uniform
one. The discount is d = n1 / (n1 + 2 n2) from the counts of counts (Ney, Essen and Kneser 1994, "On structuring probabilistic
dependences in stochastic language modelling"). It is fitted on the very targets that the model was trained on, each sample
once, and judged on the model's validation targets.

Cost: one sort of the training targets, about 0.15 s a million.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pretrain.data.feed import Feed
from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.data.objectives import Rows
from pretrain.data.plan_segments import first_segment
from pretrain.data.settings import DataSettings
from pretrain.data.validation import validation_batches

CHUNK_ROWS = 256


@dataclass(frozen=True)
class BigramModel:
    """Discounted counts of a bigram model over V tokens."""

    unigram: np.ndarray
    """(V,) float64: P(w), all over zero, sums to 1."""
    context_counts: np.ndarray
    """(V,) int64: n(c)."""
    backoff: np.ndarray
    """(V,) float64: what the unigram model is weighed with after c; 1 where c was never seen."""
    pairs: np.ndarray
    """(P,) int64, ascending: c * V + w of every pair seen."""
    discounted: np.ndarray
    """(P,) float64: (n(c w) - d) / n(c)."""

    @classmethod
    def fit(cls, contexts: np.ndarray, targets: np.ndarray, vocab_size: int) -> "BigramModel":
        """A model of (N,) contexts and the (N,) tokens that followed them."""
        pairs, counts = np.unique(contexts.astype(np.int64) * vocab_size + targets, return_counts=True)
        context_counts = np.bincount(contexts, minlength=vocab_size)
        followers = np.bincount(pairs // vocab_size, minlength=vocab_size)
        discount = _discount(counts)
        seen = np.maximum(context_counts, 1)
        return cls(
            unigram=_unigram(np.bincount(targets, minlength=vocab_size)),
            context_counts=context_counts,
            backoff=np.where(context_counts > 0, discount * followers / seen, 1.0),
            pairs=pairs,
            discounted=(counts - discount) / context_counts[pairs // vocab_size],
        )

    def probabilities(self, contexts: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """(N,) float64: P(target | context)."""
        wanted = contexts.astype(np.int64) * len(self.unigram) + targets
        smoothed = self.backoff[contexts] * self.unigram[targets]
        if len(self.pairs) == 0:
            return smoothed
        at = np.minimum(np.searchsorted(self.pairs, wanted), len(self.pairs) - 1)
        return np.where(self.pairs[at] == wanted, self.discounted[at], 0.0) + smoothed

    def loss(self, contexts: np.ndarray, targets: np.ndarray) -> float:
        """Cross-entropy per token, in nats."""
        return float(-np.log(self.probabilities(contexts, targets)).mean())


def bigram_baseline(
    data: DataSettings, *, seed: int, global_batch_sequences: int, steps: int, sequences: int | None = None
) -> float:
    """Validation loss (nats a target) of a bigram model fitted on what `steps` steps of training saw.

    Args:
        data: of the run.
        seed: of the run.
        global_batch_sequences: samples of a step.
        steps: of training.
        sequences: of the validation set, as in `validation_batches`.

    Raises:
        DataError: the data folder is missing or damaged.
    """
    feed = Feed(data, seed)
    feed.enter(first_segment(feed.plan, global_batch_sequences))
    contexts, targets = [], []
    rows = Rows.empty(CHUNK_ROWS, feed.objective.widths, feed.objective.sequence_length)
    feed.objective.lay_out(rows)
    total = steps * global_batch_sequences
    for start in range(0, total, CHUNK_ROWS):
        sources, epochs, windows = feed.plan.samples(start, min(CHUNK_ROWS, total - start))
        # A second epoch shows nothing new: repeated counts would only spoil the discount.
        first = epochs == 0
        feed.fill((sources[first], windows[first]), rows)
        part = rows.part(0, int(first.sum()))
        valid = part.labels != IGNORED
        contexts.append(part.fields["tokens"][valid])
        targets.append(part.labels[valid])
    model = BigramModel.fit(np.concatenate(contexts), np.concatenate(targets), feed.vocab_size)
    held_out = validation_batches(data, sequences=sequences, micro_batch_sequences=64, data_rank=0, data_size=1)
    return model.loss(*valid_pairs(held_out))


def valid_pairs(micro_batches: Iterable[MicroBatch]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) contexts and (N,) targets of all labelled positions."""
    contexts, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for batch in micro_batches:
        valid = batch.labels != IGNORED
        contexts.append(batch.inputs["tokens"][valid].numpy())
        targets.append(batch.labels[valid].numpy())
    return np.concatenate(contexts), np.concatenate(targets)


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2) of the counts over zero; 0.5 where no token was seen once."""
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return once / (once + 2 * twice) if once else 0.5


def _unigram(counts: np.ndarray) -> np.ndarray:
    total = int(counts.sum())
    if total == 0:
        return np.full(len(counts), 1.0 / len(counts))
    discount = _discount(counts[counts > 0])
    left_over = discount * int((counts > 0).sum()) / total
    return np.maximum(counts - discount, 0.0) / total + left_over / len(counts)
