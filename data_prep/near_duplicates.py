"""Near-duplicates among signatures: which documents are twins of an earlier one that stays.

The rule: documents in the order of the plan; each is dropped if its similarity to an earlier one that was kept is
`similarity` or more. Chains therefore do not grow (a document goes only if what it resembles stays), and the result depends on
the documents alone, not on batches or workers.

Candidates are those that share a band (locality-sensitive hashing: Indyk and Motwani 1998; Lee et al. 2022, "Deduplicating
training data makes language models better", section 4.2). Documents that are in no band with another never come up again. The
others are gone through once, in order, each against the *kept* ones of its bands: a group of N equal documents has one
kept one, so it costs N comparisons, not N squared. Where many that differ share a band (pages of one template), a document meets
the first REPRESENTATIVES of each band only; a twin beyond them can be missed. Alternatives: connected components over all
pairs (drops documents that resemble nothing that stays, and lists N squared pairs); an LSH index that grows (the order of
insertion then is the result).

Costs a document: 4 bytes a slot (512 at 128), 33 while a band is sorted; 12 a band (252 at 21) for one that shares a band.
With `exact` 8 bytes more for each shingle of a kept one, until the last that shares a band with it has passed.
"""

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import xxhash

from data_prep.minhash import EMPTY, check_bands
from data_prep.shingles import jaccard
from pretrain.data.dedup_settings import DedupSettings

REPRESENTATIVES = 256
"""Kept documents of a band that a later one is compared with."""
DEVIATIONS = 4
"""An estimate this many standard deviations below the limit is not looked at exactly: one in 30,000 is lost."""

Reread = Callable[[np.ndarray], Iterable[np.ndarray]]
"""From ascending rows to the set of shingles of each (`data_prep.shingles.shingle_sets`), in that order. A
generator saves memory."""


@dataclass(frozen=True)
class Twin:
    """A dropped document, and why."""

    dropped: int
    kept: int
    """The earlier row that it resembles, which stays."""
    similarity: float


@dataclass(frozen=True)
class Twins:
    """The near-duplicates of N documents."""

    drop: np.ndarray
    """(N,) bool."""
    kept_of: np.ndarray
    """(D,) int64: of each dropped document, in order, the earlier row that stays."""
    similarity: np.ndarray
    """(D,) float64: to that one."""
    candidates: int
    """Documents that share a band with another."""
    comparisons: int
    """Pairs that were judged."""

    def examples(self, count: int = 5) -> list[Twin]:
        """The least similar ones: what the limit decides."""
        dropped = np.flatnonzero(self.drop)
        chosen = np.argsort(self.similarity, kind="stable")[:count].tolist()
        return [Twin(int(dropped[at]), int(self.kept_of[at]), float(self.similarity[at])) for at in chosen]

    def summary(self) -> dict[str, int]:
        """Counts for reports."""
        return {"dropped": len(self.kept_of), "candidates": self.candidates, "comparisons": self.comparisons}


def find_twins(signatures: np.ndarray, kept: np.ndarray, settings: DedupSettings, reread: Reread) -> Twins:
    """Finds the documents to drop; `reread` is called once, with `signature` never.

    Args:
        signatures: (N, P) uint32, in the order of the plan.
        kept: (N,) bool: those that take part.
        settings: bands, limit, and how a candidate is judged.
        reread: gives the shingles of the candidates.

    Raises:
        ConfigError: bands that need more slots than there are.
    """
    check_bands(settings)
    rows, groups = _shared_bands(signatures, kept, settings)
    order = np.argsort(rows, kind="stable")
    rows, groups = rows[order], groups[order]
    candidates, begins = np.unique(rows, return_index=True)
    sets = reread(candidates) if settings.verify == "exact" and len(candidates) else repeat(None, len(candidates))
    search = _Search(signatures, settings, _last_rows(rows, groups))
    ends = [*begins[1:].tolist(), len(groups)]
    for row, shingles, begin, end in zip(candidates.tolist(), sets, begins.tolist(), ends, strict=False):
        search.judge(row, groups[begin:end], shingles)
    drop = np.zeros(len(signatures), dtype=bool)
    drop[search.dropped] = True
    return Twins(
        drop, np.array(search.kept_of, np.int64), np.array(search.similarity), len(candidates), search.comparisons
    )


class _Search:
    """One pass over the candidates, in order."""

    def __init__(self, signatures: np.ndarray, settings: DedupSettings, last_rows: np.ndarray) -> None:
        self.dropped, self.kept_of, self.similarity = array("q"), array("q"), array("d")
        self.comparisons = 0
        self._signatures = signatures
        self._limit = settings.similarity
        deviation = (self._limit * (1 - self._limit) / settings.permutations) ** 0.5
        self._least_estimate = self._limit - (DEVIATIONS * deviation if settings.verify == "exact" else 0)
        self._last_rows = last_rows
        self._members: defaultdict[int, list[int]] = defaultdict(list)
        self._sets: dict[int, np.ndarray] = {}
        self._leaving: defaultdict[int, list[int]] = defaultdict(list)
        self._equal: dict[int, int] = {}

    def judge(self, row: int, groups: np.ndarray, shingles: np.ndarray | None) -> None:
        """Drops the row or keeps it. `groups` are the bands that it shares."""
        digest = xxhash.xxh3_64_intdigest(self._signatures[row].tobytes())
        twin = self._twin_of(row, shingles, self._equal.get(digest), groups)
        if twin is None:
            self._keep(row, digest, groups, shingles)
        else:
            self.dropped.append(row)
            self.kept_of.append(twin[0])
            self.similarity.append(twin[1])
        for passed in self._leaving.pop(row, ()):
            self._sets.pop(passed, None)

    def _twin_of(
        self, row: int, shingles: np.ndarray | None, equal: int | None, groups: np.ndarray
    ) -> tuple[int, float] | None:
        if equal is not None and (similarity := self._similarity(row, equal, shingles, 1.0)) >= self._limit:
            return equal, similarity
        others = {other for group in groups.tolist() for other in self._members[group]}
        if not others:
            return None
        near = np.array(sorted(others))
        estimates = (self._signatures[near] == self._signatures[row]).mean(axis=1)
        chosen = np.flatnonzero(estimates >= self._least_estimate)
        for at in chosen[np.argsort(-estimates[chosen], kind="stable")].tolist():
            similarity = self._similarity(row, int(near[at]), shingles, float(estimates[at]))
            if similarity >= self._limit:
                return int(near[at]), similarity
        return None

    def _similarity(self, row: int, other: int, shingles: np.ndarray | None, estimate: float) -> float:
        self.comparisons += 1
        return estimate if shingles is None else jaccard(shingles, self._sets[other])

    def _keep(self, row: int, digest: int, groups: np.ndarray, shingles: np.ndarray | None) -> None:
        self._equal.setdefault(digest, row)
        for group in groups.tolist():
            if len(self._members[group]) < REPRESENTATIVES:
                self._members[group].append(row)
        last = int(self._last_rows[groups].max())
        if shingles is not None and last > row:
            self._sets[row] = shingles
            self._leaving[last].append(row)


def _shared_bands(signatures: np.ndarray, kept: np.ndarray, settings: DedupSettings) -> tuple[np.ndarray, np.ndarray]:
    """(M,) rows and (M,) groups: who shares a band with another; a group is a value of a band."""
    taking_part = np.flatnonzero(kept)
    maybe_empty = taking_part[signatures[taking_part, 0] == EMPTY]
    taking_part = np.setdiff1d(
        taking_part, maybe_empty[(signatures[maybe_empty] == EMPTY).all(axis=1)], assume_unique=True
    )
    rows, groups, number = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], 0
    for band in range(settings.bands):
        first = band * settings.rows_per_band
        keys = _band_keys(signatures, taking_part, first, first + settings.rows_per_band)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else order
        sizes = np.diff(np.append(starts, len(keys)))
        shared = sizes > 1
        members = np.repeat(shared, sizes)
        rows.append(taking_part[order[members]])
        groups.append(np.repeat(np.arange(number, number + shared.sum()), sizes[shared]))
        number += int(shared.sum())
    return np.concatenate(rows), np.concatenate(groups)


def _band_keys(signatures: np.ndarray, rows: np.ndarray, first: int, last: int) -> np.ndarray:
    """(M,) uint64: a hash of some slots."""
    keys = np.full(len(rows), 0x9E3779B97F4A7C15, dtype=np.uint64)
    for slot in range(first, last):
        keys ^= signatures[rows, slot]
        keys *= np.uint64(0xD6E8FEB86659FD93)
        keys ^= keys >> np.uint64(32)
    return keys


def _last_rows(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(G,) the last row of each group; rows ascend."""
    last = np.zeros(groups.max() + 1 if len(groups) else 0, dtype=np.int64)
    last[groups] = rows
    return last
