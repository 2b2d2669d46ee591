"""Held-out pairs and their translation, for encoder-decoder runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pretrain.data.micro_batch import IGNORED, MicroBatch
from pretrain.data.objectives import PairRows, build_objective
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.decoding import Sampling, StagedModel, Vocabulary, beam_search, continue_rows
from pretrain.errors import DataError
from pretrain.trained import TrainedModel

EXTRA_TARGET_TOKENS = 50
"""A translation may be so many tokens longer than its source (Vaswani et al. 2017, section 6.1)."""
ROWS_AT_ONCE = 32


@dataclass(frozen=True)
class Pair:
    """A source and its target, token ids without special ones, cut to what the model takes."""

    source: tuple[int, ...]
    target: tuple[int, ...]


def held_out_pairs(data: DataSettings, count: int) -> list[Pair]:
    """Pairs of the validation split, evenly spread, the same ones every time.

    Raises DataError where the data are missing, damaged, or hold no pairs.
    """
    rows = build_objective(data, TokenShards.open(data.folder, "validation", data.verify))
    assert isinstance(rows, PairRows)
    if rows.num_pairs == 0:
        raise DataError(f"{data.dir}: no pair is held out; raise data.prepare.validation_fraction and prepare again")
    count = min(count, rows.num_pairs)
    found = []
    for number in (np.arange(count) * rows.num_pairs // count).tolist():
        source, target = rows.pair(number)
        found.append(Pair(tuple(source[: rows.source_length].tolist()), tuple(target[: rows.sequence_length].tolist())))
    return found


def pair_batches(pairs: Sequence[Pair], trained: TrainedModel) -> Iterator[MicroBatch]:
    """Micro-batches of a pair a row, of similar lengths; every target and its end is a label."""
    special, limit = trained.tokenizer.special, trained.config.data.sequence_length
    ordered = sorted(pairs, key=lambda pair: (len(pair.target), len(pair.source)))
    for first in range(0, len(ordered), ROWS_AT_ONCE):
        chunk = ordered[first : first + ROWS_AT_ONCE]
        targets = [[special.target, *pair.target, special.end_of_text][: limit + 1] for pair in chunk]
        tokens = _filled([target[:-1] for target in targets], special.padding)
        labels = _filled([target[1:] for target in targets], IGNORED)
        sources = _filled([list(pair.source) for pair in chunk], special.padding)
        in_source = torch.arange(sources.shape[1]) < torch.tensor([len(pair.source) for pair in chunk])[:, None]
        inputs = {
            "tokens": tokens,
            "positions": torch.arange(tokens.shape[1]).expand_as(tokens).contiguous(),
            "documents": torch.where(labels != IGNORED, 0, -1),
            "source_tokens": sources,
            "source_documents": torch.where(in_source, 0, -1),
            "sample": torch.zeros(len(chunk), dtype=torch.int64),
        }
        yield MicroBatch(inputs, labels)


def shuffled_sources(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The targets with the sources of others: no pair keeps its own."""
    order = np.random.default_rng(seed).permutation(len(pairs)).tolist()
    given = {order[place]: order[place - 1] for place in range(len(order))}
    return [Pair(pairs[given[index]].source, pair.target) for index, pair in enumerate(pairs)]


def translate(
    trained: TrainedModel,
    sources: Sequence[Sequence[int]],
    *,
    beam_size: int,
    sampling: Sampling,
    max_tokens: int | None = None,
) -> list[str]:
    """Translations of token ids: by beam search for a beam size over 0, else token by token.

    `max_tokens` bounds a translation further than the model and the length of its source do.
    """
    model, vocabulary = StagedModel(trained.stack), vocabulary_of(trained)
    start, longest = trained.tokenizer.special.target, trained.config.data.sequence_length
    texts: dict[int, str] = {}
    by_length = sorted(range(len(sources)), key=lambda index: len(sources[index]))
    for first in range(0, len(by_length), ROWS_AT_ONCE):
        chunk = by_length[first : first + ROWS_AT_ONCE]
        given = [sources[index] for index in chunk]
        limits = [min(longest, len(source) + EXTRA_TARGET_TOKENS, max_tokens or longest) for source in given]
        if beam_size > 0:
            rows = beam_search(model, given, start, limits, beam_size, vocabulary)
        else:
            rows = continue_rows(model, [[start]] * len(given), limits, sampling, vocabulary, sources=given)
        texts |= {index: trained.tokenizer.decode(row) for index, row in zip(chunk, rows, strict=True)}
    return [texts[index] for index in range(len(sources))]


def vocabulary_of(trained: TrainedModel) -> Vocabulary:
    """The special ids as decoding treats them."""
    special = trained.tokenizer.special
    return Vocabulary(stop=special.end_of_text, banned=(special.target, special.padding), padding=special.padding)


def _filled(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """(B, S) of rows that are filled up at their end."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
