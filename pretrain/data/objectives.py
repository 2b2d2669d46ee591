"""Objectives: how stored tokens become the rows that a model reads and the labels that it must predict.

Legend: B rows, S tokens of a (target) sequence, R tokens of a source sequence. All arrays are int64, filled in place.

`CausalWindows`: the stream of tokens cut into windows of S + 1, each predicting its tokens 1 .. S from those before (Radford et
al. 2018). With `isolate`, documents in a window do not see each other: they are numbered, positions restart, and the first
token of a document is no target, for nothing that belongs to it stands before it (Grattafiori et al. 2024, section 3.2).

`PairRows`: source -> target (Sutskever et al. 2014; Vaswani et al. 2017). Neighbouring pairs share a row as long as both sides
fit, numbered like documents, since one short sentence a row would leave most of the batch to padding (Raffel et al. 2020,
section 3.1.1). A pair is one document of the store, so its two sides cannot come apart. Pairs that do not fit are cut, counted,
and told. Alternative not taken: sorting by length, which makes batches of one kind and ties the order to the lengths.
Cost: 12 bytes of memory a pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pretrain.data.micro_batch import IGNORED
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.errors import DataError

TARGET_FIELDS, SOURCE_FIELDS = ("tokens", "positions", "documents"), ("source_tokens", "source_documents")


@dataclass(frozen=True)
class Rows:
    """Arrays of B rows, filled by an objective: the fields of MicroBatch.inputs, and the labels (B, S)."""

    fields: Mapping[str, np.ndarray]
    labels: np.ndarray

    @classmethod
    def empty(cls, rows: int, widths: Mapping[str, int], sequence_length: int) -> "Rows":
        """Unfilled rows of the given widths."""
        fields: dict[str, np.ndarray] = {}
        for name, width in widths.items():
            fields[name] = np.empty((rows, width), dtype=np.int64)
        fields["sample"] = np.empty(rows, dtype=np.int64)
        return cls(fields, np.empty((rows, sequence_length), dtype=np.int64))

    def part(self, start: int, stop: int) -> "Rows":
        """Views of some of the rows."""
        return Rows({name: array[start:stop] for name, array in self.fields.items()}, self.labels[start:stop])

    def clear(self, padding: int) -> None:
        """Makes every row padding: no document, no target. `sample` stays."""
        fillers = {"tokens": padding, "source_tokens": padding, "positions": 0, "documents": -1, "source_documents": -1}
        for name in self.fields.keys() & fillers.keys():
            self.fields[name].fill(fillers[name])
        self.labels.fill(IGNORED)


class Objective(Protocol):
    """What turns sample numbers into rows."""

    widths: Mapping[str, int]
    """Fields of a row, `sample` aside, and their widths."""
    sequence_length: int
    padding: int
    """Id that fills up rows."""
    num_samples: int
    """Samples of a training epoch; all rows are full where the objective can fill them."""
    num_validation_samples: int
    """Samples that cover every target of the split once; the last may be short."""
    facts: Mapping[str, Any]
    """What the rows depend on beside the shards; enters the plan hash."""
    notes: tuple[str, ...]
    """What the user should be told, in sentences: sequences that are cut."""

    def fill(self, samples: np.ndarray, rows: Rows) -> None:
        """Fills as many rows as there are samples, `sample` aside. Raises DataError for damage."""
        ...


def build_objective(data: DataSettings, shards: TokenShards) -> Objective:
    """The objective that the config asks for. Raises DataError where the data cannot serve it."""
    if data.objective == "seq2seq":
        return PairRows(shards, data.sequence_length, data.source_length or data.sequence_length, data.pair_packing)
    return CausalWindows(shards, data.sequence_length, data.document_mask)


class CausalWindows:
    """Windows over the stream of tokens, next-token prediction."""

    notes: tuple[str, ...] = ()

    def __init__(self, shards: TokenShards, sequence_length: int, document_mask: str) -> None:
        self._shards = shards
        self._isolate = document_mask == "isolate"
        self._count = np.arange(sequence_length, dtype=np.int64)
        self.sequence_length = sequence_length
        self.padding = shards.manifest.special.padding
        self._end_of_text = shards.manifest.special.end_of_text
        self.widths: Mapping[str, int] = dict.fromkeys(TARGET_FIELDS, sequence_length)
        self.facts: Mapping[str, Any] = {
            "objective": "causal",
            "sequence_length": sequence_length,
            "document_mask": document_mask,
        }
        targets = max(shards.num_tokens - 1, 0)
        self.num_samples = targets // sequence_length
        self.num_validation_samples = -(-targets // sequence_length)

    def fill(self, samples: np.ndarray, rows: Rows) -> None:
        """Fills rows with the windows of these numbers."""
        rows = rows.part(0, len(samples))
        tokens, labels = rows.fields["tokens"], rows.labels
        rows.fields["positions"][:] = self._count
        rows.fields["documents"].fill(0)
        for row, ids in enumerate(self._shards.read_windows(samples * self.sequence_length, self.sequence_length + 1)):
            filled = len(ids) - 1  # S, but for the last window of the stream
            if filled < self.sequence_length:
                rows.part(row, row + 1).clear(self.padding)
                rows.fields["documents"][row, :filled] = 0
            tokens[row, :filled] = ids[:-1]
            labels[row, :filled] = ids[1:]
        if self._isolate:
            self._separate(rows)

    def _separate(self, rows: Rows) -> None:
        """Numbers the documents of each row, restarts positions, and takes away the targets that cross from one to the next."""
        ends = (
            rows.fields["tokens"] == self._end_of_text
        )  # (B, S); no text holds this id, and every document ends with it
        rows.labels[ends] = IGNORED
        some = np.flatnonzero(ends[:, :-1].any(axis=1))
        starts = np.zeros((len(some), self.sequence_length), dtype=bool)
        starts[:, 1:] = ends[some, :-1]
        padded = rows.fields["documents"][some] < 0
        rows.fields["documents"][some] = np.where(padded, -1, np.cumsum(starts, axis=1))
        first = np.maximum.accumulate(np.where(starts, self._count, 0), axis=1)
        rows.fields["positions"][some] = np.where(padded, 0, self._count - first)


class PairRows:
    """Rows of source-target pairs for an encoder-decoder."""

    def __init__(self, shards: TokenShards, sequence_length: int, source_length: int, packing: str) -> None:
        """Plans the rows.

        Raises:
            DataError: the data hold plain documents.
        """
        if shards.manifest.kind != "pairs":
            raise DataError(
                f"{shards.folder}: holds plain documents, but data.objective is seq2seq, which reads pairs; "
                "prepare a corpus of pairs, or set data.objective to causal"
            )
        self._shards = shards
        self.sequence_length, self.source_length = sequence_length, source_length
        self.padding = shards.manifest.special.padding
        self.widths: Mapping[str, int] = {
            **dict.fromkeys(TARGET_FIELDS, sequence_length),
            **dict.fromkeys(SOURCE_FIELDS, source_length),
        }
        self.facts: Mapping[str, Any] = {
            "objective": "seq2seq",
            "sequence_length": sequence_length,
            "source_length": source_length,
            "pair_packing": packing,
        }
        lengths = shards.lengths()
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._sources = shards.source_lengths().astype(np.int32)
        targets = lengths - self._sources - 1  # <|target|> is stored between the sides; the end of text is a target
        self._row_starts = _plan_rows(
            np.minimum(self._sources, source_length), np.minimum(targets, sequence_length),
            source_length, sequence_length, packing,
        )  # fmt: skip
        self.num_samples = self.num_validation_samples = len(self._row_starts) - 1
        self.notes = _cut_notes(self._sources, source_length, "source", "data.source_length")
        self.notes += _cut_notes(targets, sequence_length, "target", "data.sequence_length")

    def fill(self, samples: np.ndarray, rows: Rows) -> None:
        """Fills rows with the pairs that the plan gives them."""
        rows.part(0, len(samples)).clear(self.padding)
        for row, sample in enumerate(samples.tolist()):
            first, last = int(self._row_starts[sample]), int(self._row_starts[sample + 1])
            start = int(self._starts[first])
            ids = self._shards.read(start, int(self._starts[last]))
            source_at = target_at = 0
            for number, pair in enumerate(range(first, last)):
                pair_ids = ids[self._starts[pair] - start : self._starts[pair + 1] - start]
                source_at += self._put_source(rows, row, source_at, number, pair_ids[: self._sources[pair]])
                target_at += self._put_target(rows, row, target_at, number, pair_ids[self._sources[pair] :])

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Whole source and target of a pair, without special tokens. Raises DataError for damage."""
        ids = self._shards.read(int(self._starts[number]), int(self._starts[number + 1]))
        source = int(self._sources[number])
        return ids[:source], ids[source + 1 : -1]

    @property
    def num_pairs(self) -> int:
        """Pairs of the split."""
        return len(self._sources)

    def _put_source(self, rows: Rows, row: int, at: int, number: int, ids: np.ndarray) -> int:
        count = min(len(ids), self.source_length)
        rows.fields["source_tokens"][row, at : at + count] = ids[:count]
        rows.fields["source_documents"][row, at : at + count] = number
        return count

    def _put_target(self, rows: Rows, row: int, at: int, number: int, ids: np.ndarray) -> int:
        """ids: <|target|> t1 .. tn <|endoftext|>; each is read to predict the next."""
        count = min(len(ids) - 1, self.sequence_length)
        rows.fields["tokens"][row, at : at + count] = ids[:count]
        rows.labels[row, at : at + count] = ids[1 : count + 1]
        rows.fields["positions"][row, at : at + count] = np.arange(count)
        rows.fields["documents"][row, at : at + count] = number
        return count


def _plan_rows(sources: np.ndarray, targets: np.ndarray, source_length: int, length: int, packing: str) -> np.ndarray:
    """(rows + 1,) first pair of each row, and the number of pairs: as many neighbours as fit, from the first on."""
    pairs = len(sources)
    if packing == "single":
        return np.arange(pairs + 1, dtype=np.int64)
    source_ends, target_ends = np.cumsum(sources, dtype=np.int64), np.cumsum(targets, dtype=np.int64)
    # next_row[i]: the first pair that no longer fits into a row which begins with pair i.
    next_row = np.minimum(
        np.searchsorted(source_ends, source_ends - sources + source_length, side="right"),
        np.searchsorted(target_ends, target_ends - targets + length, side="right"),
    ).tolist()
    starts, pair = [0], 0
    while pair < pairs:
        pair = next_row[pair]
        starts.append(pair)
    return np.array(starts, dtype=np.int64)


def _cut_notes(lengths: np.ndarray, limit: int, side: str, field: str) -> tuple[str, ...]:
    cut = int((lengths > limit).sum())
    if not cut:
        return ()
    return (
        f"{cut:,} of {len(lengths):,} pairs have a {side} longer than {field}={limit} and are cut there; "
        f"the longest has {int(lengths.max()):,} tokens",
    )
