"""Decoding: from a model and some tokens to further tokens. Sampling, greedy, and beam search; no files, no text.

Legend: B rows, S tokens so far, N sources, K beams, V vocabulary.

Rows of unequal length are padded at their end: what stands behind a position cannot reach it. Every step runs the decoder over
all tokens so far, S^2 work for S tokens; the encoder runs once, and the projection to the vocabulary for the last position
alone. Not taken: a key-value cache, which would put a second way through every attention layer; it pays from some hundred
tokens on, where a serving system is the right tool.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import xxhash
from torch import nn

from pretrain.model.carry import OF_EXPERTS, Carry
from pretrain.model.layers import LayerSpec, LayerStack

LENGTH_PENALTY = 0.6
"""Alpha of beam search (Vaswani et al. 2017, section 6.1)."""

OnToken = Callable[[int, int], None]
"""Is told (row, token) as soon as a token is chosen."""


@dataclass(frozen=True)
class Vocabulary:
    """Ids that decoding treats specially."""

    stop: int
    """Ends a row; it is not part of the result."""
    banned: tuple[int, ...]
    """Never chosen: ids that no text has."""
    padding: int
    """Fills up rows."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the distribution that the model gives."""

    temperature: float
    """Divides the logits; 0: the likeliest token is taken."""
    top_p: float
    """Smallest probability that the set of likeliest tokens must have together; the rest is cut off (Holtzman et al. 2020)."""
    seed: int


class StagedModel:
    """A LayerStack, run in three parts: the encoder once, the blocks of the decoder, and what makes logits of a position."""

    def __init__(self, stack: LayerStack) -> None:
        """Splits the layers. Without an encoder its part is empty."""
        layers = list(stack.steps)
        specs = [spec for spec, _ in layers]
        start = next((index for index, spec in enumerate(specs) if "memory" in spec.flow.adds), 0)
        end = len(specs)
        while end > 0 and specs[end - 1].flow.reads == {"hidden"}:
            end -= 1
        self._encoder, self._decoder, self._head = layers[:start], layers[start:end], layers[end:]
        self.device = next(stack.parameters()).device

    def encode(self, sources: Sequence[Sequence[int]], padding: int) -> Carry:
        """The encoder's output for N sources, a carry of (N, ...) tensors."""
        tokens, lengths = _padded(sources, padding)
        documents = torch.where(torch.arange(tokens.shape[1]) < lengths[:, None], 0, -1)
        carry = {"source_tokens": tokens, "source_documents": documents, "sample": torch.zeros_like(lengths)}
        encoded = _run(self._encoder, {name: tensor.to(self.device) for name, tensor in carry.items()})
        return {name: tensor for name, tensor in encoded.items() if name not in OF_EXPERTS}

    def next_logits(self, rows: Sequence[Sequence[int]], encoded: Carry | None, padding: int) -> torch.Tensor:
        """(B, V) fp32 logits, on the CPU, of the token that follows each of B rows."""
        tokens, lengths = _padded(rows, padding)
        carry = {
            "tokens": tokens,
            "positions": torch.arange(tokens.shape[1]).expand_as(tokens),
            "documents": torch.zeros_like(tokens),
            "sample": torch.zeros_like(lengths),
        }
        placed = {name: tensor.to(self.device) for name, tensor in carry.items()}
        carry = _run(self._decoder, {**placed, **(encoded or {})})
        last = (lengths - 1).to(self.device)
        carry["hidden"] = carry["hidden"][torch.arange(len(rows), device=self.device), last].unsqueeze(1)  # (B, 1, D)
        return _run(self._head, carry)["logits"].squeeze(1).float().cpu()


@torch.inference_mode()
def continue_rows(
    model: StagedModel,
    starts: Sequence[Sequence[int]],
    limits: Sequence[int],
    sampling: Sampling,
    vocabulary: Vocabulary,
    *,
    sources: Sequence[Sequence[int]] | None = None,
    on_token: OnToken | None = None,
) -> list[list[int]]:
    """Tokens that follow each start, one after another, until the stop token or a row's limit of new tokens.

    A row's result depends on its start, its source, its number and the seed; rounding aside, not on the other rows.
    """
    results: list[list[int]] = [[] for _ in starts]
    encoded = None if sources is None else model.encode(sources, vocabulary.padding)
    generators = [_generator(sampling.seed, row) for row in range(len(starts))]
    active = [row for row, limit in enumerate(limits) if limit > 0]
    while active:
        logits = model.next_logits(
            [[*starts[row], *results[row]] for row in active], _select(encoded, active), vocabulary.padding
        )
        chosen = choose(_allowed(logits, vocabulary), sampling, [generators[row] for row in active])
        for row, token in zip(active, chosen, strict=True):
            if token != vocabulary.stop:
                results[row].append(token)
                if on_token is not None:
                    on_token(row, token)
        going = [token != vocabulary.stop for token in chosen]
        active = [row for row, goes in zip(active, going, strict=True) if goes and len(results[row]) < limits[row]]
    return results


def choose(logits: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """A token for each row of (B, V) logits; each row draws one number from its own generator."""
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    scaled = torch.softmax(logits.double() / sampling.temperature, -1)
    probabilities, tokens = torch.sort(scaled, dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities  # (B, V): the mass of likelier tokens
    kept = probabilities.masked_fill((before >= sampling.top_p) & (before > 0), 0.0)
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    reached = kept.cumsum(-1)
    picks = torch.searchsorted(reached, (draws * reached[:, -1]).unsqueeze(1), right=True)
    last = (kept > 0).sum(-1, keepdim=True) - 1  # rounding may carry a draw past the last token that is kept
    return tokens.gather(-1, picks.minimum(last)).squeeze(1).tolist()


def length_penalty(length: int, alpha: float = LENGTH_PENALTY) -> float:
    """What a hypothesis' log-probability is divided by (Wu et al. 2016, section 7)."""
    return ((5 + length) / 6) ** alpha


@dataclass
class _Search:
    """The beams of one source."""

    source: int
    limit: int
    rows: list[list[int]]
    """Hypotheses that go on, each with the start token."""
    scores: list[float]
    """Their log-probabilities, descending."""
    best: tuple[float, list[int]] = (-math.inf, [])
    """Normalised score and tokens of the best hypothesis that has ended."""

    def extend(self, candidates: Sequence[tuple[float, int, int]], beam_size: int, stop: int) -> None:
        """Takes one more token: candidates are (log-probability, beam, token), descending."""
        rows: list[list[int]] = []
        scores: list[float] = []
        for score, beam, token in candidates:
            if score == -math.inf:
                continue
            length = len(self.rows[beam])  # new tokens, this one included: the start token is no part
            if token == stop:
                self.best = max(
                    self.best, (score / length_penalty(length), self.rows[beam][1:]), key=lambda best: best[0]
                )
            elif len(rows) < beam_size:
                rows.append([*self.rows[beam], token])
                scores.append(score)
        self.rows, self.scores = rows, scores

    @property
    def is_done(self) -> bool:
        """Whether no hypothesis can become better than the best that has ended, or none may grow."""
        if not self.rows or len(self.rows[0]) - 1 >= self.limit:
            return True
        # A log-probability only falls and the penalty only grows: this bounds whatever the first beam may become.
        return self.best[0] >= self.scores[0] / length_penalty(self.limit)

    @property
    def result(self) -> list[int]:
        """The best hypothesis; where none has ended, the likeliest that was cut."""
        return self.best[1] if self.best[0] > -math.inf else self.rows[0][1:]


@torch.inference_mode()
def beam_search(
    model: StagedModel,
    sources: Sequence[Sequence[int]],
    start: int,
    limits: Sequence[int],
    beam_size: int,
    vocabulary: Vocabulary,
) -> list[list[int]]:
    """For each source the target of the highest length-normalised probability that `beam_size` beams find.

    Args:
        model: an encoder-decoder.
        sources: token ids.
        start: the token that every target begins with; it is not part of the result.
        limits: most new tokens of each target, the stop token included.
        beam_size: K.
        vocabulary: special ids.
    """
    encoded = model.encode(sources, vocabulary.padding)
    searches = [_Search(index, limit, [[start]], [0.0]) for index, limit in enumerate(limits)]
    active = [search for search in searches if search.limit > 0]
    while active:
        rows = [row for search in active for row in search.rows]
        owners = [search.source for search in active for _ in search.rows]
        logits = model.next_logits(rows, _select(encoded, owners), vocabulary.padding)
        steps = torch.log_softmax(_allowed(logits, vocabulary).double(), -1)
        first = 0
        for search in active:
            scores = torch.tensor(search.scores, dtype=torch.float64)
            totals = steps[first : first + len(search.rows)] + scores[:, None]  # (K, V)
            first += len(search.rows)
            # Each beam can end in one way, so among 2 K candidates at least K go on.
            values, places = totals.flatten().topk(min(2 * beam_size, totals.numel()))
            width = totals.shape[1]
            candidates = [
                (value, place // width, place % width)
                for value, place in zip(values.tolist(), places.tolist(), strict=True)
            ]
            search.extend(candidates, beam_size, vocabulary.stop)
        active = [search for search in active if not search.is_done]
    return [search.result for search in searches]


def _run(layers: Sequence[tuple[LayerSpec, nn.Module]], carry: Carry) -> Carry:
    for spec, module in layers:
        carry = spec.run(module, carry)
    return carry


def _padded(rows: Sequence[Sequence[int]], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, S) tokens and (B,) lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    return torch.tensor([[*row, *[padding] * (width - len(row))] for row in rows]), lengths


def _select(encoded: Carry | None, rows: Sequence[int]) -> Carry | None:
    """The given rows of an encoder's output."""
    if encoded is None:
        return None
    index = torch.tensor(rows, device=encoded["hidden"].device)
    return {name: tensor[index] for name, tensor in encoded.items()}


def _allowed(logits: torch.Tensor, vocabulary: Vocabulary) -> torch.Tensor:
    return logits.index_fill(-1, torch.tensor(vocabulary.banned, dtype=torch.int64), -math.inf)


def _generator(seed: int, row: int) -> torch.Generator:
    key = xxhash.xxh3_64_intdigest(f"decoding/seed={seed}/row={row}".encode())
    return torch.Generator().manual_seed(key >> 1)
