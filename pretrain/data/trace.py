"""Which documents were in a step: the plan asked backwards, exact at any step of any run, with nothing stored per step."""

from collections.abc import Iterator
from dataclasses import dataclass

from pretrain.data.feed import Feed
from pretrain.data.objectives import PairRows, PairSources
from pretrain.data.token_shards import TokenShards


@dataclass(frozen=True)
class DocumentPart:
    """A document, or pair, of which some tokens were in a sample."""

    file: str
    """Its shard."""
    number: int
    """In the shard, from 0."""
    start: int
    """Its first token in the stream of its source."""
    first_token: int
    """Of the document, that was in the sample."""
    last_token: int
    """One behind the last that was in the sample."""
    length: int
    """Tokens of the whole document."""


@dataclass(frozen=True)
class TracedSample:
    """One row of a step's global batch."""

    sample: int
    """Its number in the run."""
    source: str
    epoch: int
    """Of its source, from 0."""
    window: int
    """Its number in the source."""
    documents: tuple[DocumentPart, ...]


def trace_samples(feed: Feed, first: int, count: int) -> Iterator[TracedSample]:
    """The samples `first` .. `first + count - 1` of a run; the feed stands in their segment. Raises DataError for damage."""
    plan, place = feed.plan, feed.segment.place(first)
    sources, epochs, windows = plan.samples(place, count)
    columns = zip(sources.tolist(), epochs.tolist(), windows.tolist(), strict=True)
    for row, (source, epoch, window) in enumerate(columns):
        stream = feed.streams[source]
        start, stop = _tokens_of(feed, stream, source, window)
        documents = tuple(_documents(stream, start, stop))
        yield TracedSample(first + row, plan.sources[source].name, epoch, window, documents)


def _tokens_of(feed: Feed, stream: TokenShards, source: int, window: int) -> tuple[int, int]:
    """The tokens of a source's stream that a sample reads."""
    objective = feed.objective
    if isinstance(objective, PairSources):
        objective = objective.parts[source]
    if isinstance(objective, PairRows):
        first, last = objective.pairs_of(window)
        return stream.document_bounds(first)[0], stream.document_bounds(last - 1)[1]
    start = window * objective.sequence_length
    return start, min(start + objective.sequence_length + 1, stream.num_tokens)  # its last label included


def _documents(stream: TokenShards, start: int, stop: int) -> Iterator[DocumentPart]:
    for document in range(stream.document_at(start), stream.document_at(stop - 1) + 1):
        first, last = stream.document_bounds(document)
        index, number = stream.place_of_document(document)
        yield DocumentPart(
            stream.file(index), number, first, max(start - first, 0), min(stop, last) - first, last - first
        )
