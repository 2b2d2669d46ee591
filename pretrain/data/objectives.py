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


@dataclass(frozen=True)
class Rows:
    """Arrays of B rows, filled by an objective: the fields of MicroBatch.inputs, and the labels (B, S)."""

    fields: Mapping[str, np.ndarray]
    labels: np.ndarray

    @classmethod
    def empty(cls, rows: int, widths: Mapping[str, int], sequence_length: int) -> "Rows":
        """Unfilled rows of the given widths."""
        fields = {name: np.empty((rows, width), dtype=np.int64) for name, width in widths.items()}
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
        self.widths = dict.fromkeys(("tokens", "positions", "documents"), sequence_length)
        self.facts = {"objective": "causal", "sequence_length": sequence_length, "document_mask": document_mask}
        targets = max(shards.num_tokens - 1, 0)
        self.num_samples = targets // sequence_length
        self.num_validation_samples = -(-targets // sequence_length)

    def fill(self, samples: np.ndarray, rows: Rows) -> None:
        """Fills rows with the windows of these numbers."""
        tokens, labels = rows.fields["tokens"], rows.labels
        positions, documents = rows.fields["positions"], rows.fields["documents"]
        length = self.sequence_length
        for row, window in enumerate(samples.tolist()):
            start = window * length
            stop = min(start + length + 1, self._shards.num_tokens)
            ids = self._shards.read(start, stop)  # (S + 1,), shorter at the end of the stream
            filled = len(ids) - 1
            if filled < length:
                rows.part(row, row + 1).clear(self.padding)
            tokens[row, :filled] = ids[:-1]
            labels[row, :filled] = ids[1:]
            positions[row, :filled] = self._count[:filled]
            documents[row, :filled] = 0
            if self._isolate:
                starts = self._shards.document_starts(start + 1, stop) - start  # in 1 .. filled
                if len(starts):
                    labels[row, starts - 1] = IGNORED
                    self._restart(starts, positions[row, :filled], documents[row, :filled])

    def _restart(self, starts: np.ndarray, positions: np.ndarray, documents: np.ndarray) -> None:
        """Numbers documents and positions of one row, given where the second and later documents start."""
        starts = starts[starts < len(positions)]
        bounds = np.concatenate([[0], starts, [len(positions)]])
        lengths = np.diff(bounds)
        documents[:] = np.repeat(np.arange(len(lengths)), lengths)
        positions -= np.repeat(bounds[:-1], lengths)


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
        self.widths = dict.fromkeys(("tokens", "positions", "documents"), sequence_length)
        self.widths |= dict.fromkeys(("source_tokens", "source_documents"), source_length)
        self.facts = {
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
