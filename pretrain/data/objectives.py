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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pretrain.data.micro_batch import IGNORED
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.errors import DataError

Allocator = Callable[[tuple[int, ...]], np.ndarray]
"""Makes an int64 array of a shape."""
CHUNK_TOKENS = 1 << 17
"""Tokens that are widened at once: what is made of them on the way stays in a core's cache."""
TARGET_FIELDS, SOURCE_FIELDS = ("tokens", "positions", "documents"), ("source_tokens", "source_documents")


@dataclass(frozen=True)
class Rows:
    """Arrays of B rows, filled by an objective: the fields of MicroBatch.inputs, and the labels (B, S)."""

    fields: Mapping[str, np.ndarray]
    labels: np.ndarray
    sources: np.ndarray | None = None
    """(B,) int64: number of the source of each row, filled by the feed; None where nobody asks."""

    @classmethod
    def empty(
        cls, rows: int, widths: Mapping[str, int], sequence_length: int, allocate: "Allocator | None" = None
    ) -> "Rows":
        """Unfilled rows of the given widths; `allocate` makes the arrays."""
        make: Allocator = allocate or (lambda shape: np.empty(shape, dtype=np.int64))
        fields = {name: make((rows, width)) for name, width in widths.items()}
        return cls({**fields, "sample": make((rows,))}, make((rows, sequence_length)))

    def part(self, start: int, stop: int) -> "Rows":
        """Views of some of the rows."""
        fields = {name: array[start:stop] for name, array in self.fields.items()}
        return Rows(fields, self.labels[start:stop], None if self.sources is None else self.sources[start:stop])

    def clear(self, padding: int) -> None:
        """Makes every row padding: no document, no target. `sample` stays."""
        fillers = {"tokens": padding, "source_tokens": padding, "positions": 0, "documents": -1, "source_documents": -1}
        for name in self.fields.keys() & fillers.keys():
            self.fields[name].fill(fillers[name])
        self.labels.fill(IGNORED)


class Objective(Protocol):
    """What turns sample numbers of one or several sources into rows."""

    widths: Mapping[str, int]
    """Fields of a row, `sample` aside, and their widths."""
    sequence_length: int
    padding: int
    """Id that fills up rows."""
    source_samples: tuple[int, ...]
    """Samples of a training epoch of each source; all rows are full where the objective can fill them."""
    source_validation_samples: tuple[int, ...]
    """Samples of each source that cover every target of the split once; its last may be short."""
    facts: Mapping[str, Any]
    """What the rows depend on beside the shards; enters the plan hash."""
    notes: tuple[str, ...]
    """What the user should be told, in sentences: sequences that are cut."""

    @property
    def num_samples(self) -> int:
        """Of all sources."""
        ...

    @property
    def num_validation_samples(self) -> int:
        """Of all sources."""
        ...

    def lay_out(self, rows: Rows) -> None:
        """Fills what is the same in every row of every batch; once, before the first `fill` of these rows."""
        ...

    def fill(self, samples: np.ndarray, rows: Rows, sources: np.ndarray | None = None) -> None:
        """Fills as many rows as there are samples, `sample` aside. Raises DataError for damage.

        Args:
            samples: (N,) numbers within their sources.
            rows: N or more.
            sources: (N,) of each sample; None: all of the first.
        """
        ...


def build_objective(data: DataSettings, *streams: TokenShards) -> Objective:
    """The objective that the config asks for, over one stream a source. Raises DataError where the data cannot serve it."""
    if data.objective == "seq2seq":
        source_length = data.source_length or data.sequence_length
        pairs = [PairRows(stream, data.sequence_length, source_length, data.pair_packing) for stream in streams]
        return pairs[0] if len(pairs) == 1 else PairSources(pairs)
    return CausalWindows(streams, data.sequence_length, data.document_mask)


class CausalWindows:
    """Windows over streams of tokens, next-token prediction.

    The ends of documents are found by comparing the stored 16-bit tokens, 0.15 us a window of 2,048; bisection over the index of
    the shard takes 3 us in numpy calls.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, streams: TokenShards | Sequence[TokenShards], sequence_length: int, document_mask: str) -> None:
        self.streams = (streams,) if isinstance(streams, TokenShards) else tuple(streams)
        self._isolate = document_mask == "isolate"
        self._count = np.arange(sequence_length, dtype=np.int64)
        self.sequence_length = sequence_length
        manifest = self.streams[0].manifest
        self.padding = manifest.special.padding
        self._end_of_text = manifest.special.end_of_text
        self._chunk = max(1, CHUNK_TOKENS // sequence_length)
        self._stored = np.zeros((self._chunk, sequence_length + 1), dtype=manifest.dtype)
        self.widths: Mapping[str, int] = dict.fromkeys(TARGET_FIELDS, sequence_length)
        self.facts: Mapping[str, Any] = {
            "objective": "causal",
            "sequence_length": sequence_length,
            "document_mask": document_mask,
        }
        targets = [max(stream.num_tokens - 1, 0) for stream in self.streams]
        self.source_samples = tuple(count // sequence_length for count in targets)
        self.source_validation_samples = tuple(-(-count // sequence_length) for count in targets)

    @property
    def num_samples(self) -> int:
        """Windows of all sources."""
        return sum(self.source_samples)

    @property
    def num_validation_samples(self) -> int:
        """Windows of all sources, short ones included."""
        return sum(self.source_validation_samples)

    def lay_out(self, rows: Rows) -> None:
        """Positions and documents, where ends of documents do not show in them."""
        if not self._isolate:
            rows.fields["positions"][:] = self._count
            rows.fields["documents"].fill(0)

    def fill(self, samples: np.ndarray, rows: Rows, sources: np.ndarray | None = None) -> None:
        """Fills rows with the windows of these numbers."""
        for first in range(0, len(samples), self._chunk):
            some = slice(first, first + self._chunk)
            mine = None if sources is None else sources[some]
            self._fill(samples[some], rows.part(first, min(some.stop, len(samples))), mine)

    def _fill(self, samples: np.ndarray, rows: Rows, sources: np.ndarray | None) -> None:
        stored = self._stored[: len(samples)]
        short = self._gather(samples, sources, stored)
        rows.fields["tokens"][:] = stored[:, :-1]
        rows.labels[:] = stored[:, 1:]
        if self._isolate:
            self._separate(stored, rows)
        for row, filled in short:
            Rows(
                {name: rows.fields[name][row : row + 1, filled:] for name in TARGET_FIELDS},
                rows.labels[row : row + 1, filled:],
            ).clear(self.padding)

    def _gather(self, samples: np.ndarray, sources: np.ndarray | None, stored: np.ndarray) -> list[tuple[int, int]]:
        """Copies windows (N, S + 1) as they are stored; returns rows that got fewer targets than S, and how many."""
        found = []
        for number, stream in enumerate(self.streams):
            at = np.arange(len(samples)) if sources is None else np.flatnonzero(sources == number)
            if len(at):
                got = stream.gather(samples[at] * self.sequence_length, stored, at) - 1
                few = np.flatnonzero(got < self.sequence_length)
                found += zip(at[few].tolist(), got[few].tolist(), strict=True)
            if sources is None:
                break
        return found

    def _separate(self, stored: np.ndarray, rows: Rows) -> None:
        """Numbers the documents of each row, restarts positions, and takes away the targets that cross from one to the next."""
        count, length = len(stored), self.sequence_length
        # No text holds this id, and every document ends with it.
        row, column = np.divmod(np.flatnonzero(stored == self._end_of_text), length + 1)
        inside = column < length  # the last token of a window is a label alone
        row, column = row[inside], column[inside]
        rows.labels[row, column] = IGNORED
        firsts, behind = np.arange(0, count * length, length), row * length + column + 1
        starts = np.sort(np.concatenate([firsts, behind[column < length - 1]]))
        lengths = np.diff(starts, append=count * length)
        place = starts % length
        numbers = np.arange(len(starts)) - np.searchsorted(starts, starts - place)
        rows.fields["documents"][:] = np.repeat(numbers, lengths).reshape(count, length)
        np.subtract(self._count, np.repeat(place, lengths).reshape(count, length), out=rows.fields["positions"])


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
        self.source_samples = self.source_validation_samples = (self.num_samples,)
        self.notes = _cut_notes(self._sources, source_length, "source", "data.source_length")
        self.notes += _cut_notes(targets, sequence_length, "target", "data.sequence_length")

    def lay_out(self, rows: Rows) -> None:
        """Nothing: every row is another one."""

    def fill(self, samples: np.ndarray, rows: Rows, sources: np.ndarray | None = None) -> None:
        """Fills rows with the pairs that the plan gives them."""
        rows.part(0, len(samples)).clear(self.padding)
        for row, sample in enumerate(samples.tolist()):
            self.put(sample, rows, row)

    def put(self, sample: int, rows: Rows, row: int) -> None:
        """Fills one row, which must be clear."""
        first, last = int(self._row_starts[sample]), int(self._row_starts[sample + 1])
        start = int(self._starts[first])
        ids = self._shards.read(start, int(self._starts[last]))
        source_at = target_at = 0
        for number, pair in enumerate(range(first, last)):
            pair_ids = ids[self._starts[pair] - start : self._starts[pair + 1] - start]
            source_at += self._put_source(rows, row, source_at, number, pair_ids[: self._sources[pair]])
            target_at += self._put_target(rows, row, target_at, number, pair_ids[self._sources[pair] :])

    def pairs_of(self, sample: int) -> tuple[int, int]:
        """First pair of a row, and the first of the next."""
        return int(self._row_starts[sample]), int(self._row_starts[sample + 1])

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


class PairSources:
    """Rows of pairs of several sources; a row holds pairs of one."""

    def __init__(self, parts: Sequence[PairRows]) -> None:
        self.parts, first = tuple(parts), parts[0]
        self.sequence_length, self.padding = first.sequence_length, first.padding
        self.widths, self.facts = first.widths, first.facts
        self.source_samples = self.source_validation_samples = tuple(part.num_samples for part in parts)
        self.num_samples = self.num_validation_samples = sum(self.source_samples)
        self.notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))

    def lay_out(self, rows: Rows) -> None:
        """Nothing: every row is another one."""

    def fill(self, samples: np.ndarray, rows: Rows, sources: np.ndarray | None = None) -> None:
        """Fills rows with the pairs that the plans of their sources give them."""
        rows.part(0, len(samples)).clear(self.padding)
        numbers = [0] * len(samples) if sources is None else sources.tolist()
        for row, (sample, source) in enumerate(zip(samples.tolist(), numbers, strict=True)):
            self.parts[source].put(sample, rows, row)


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
