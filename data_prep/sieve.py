"""Read, clean, hold against eval files: from a range of files to what may be learnt from, a batch at a time.

Both ways of preparing go through here. Nothing holds more than a batch of documents, so memory does not grow with a range,
however much a compressed file of it unpacks to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import xxhash

from data_prep.cleaning.chain import Chain, Removed
from data_prep.cleaning.tally import EXAMPLE_CHARACTERS, Example
from data_prep.counts import Counts
from data_prep.decontaminate import Decontaminator
from data_prep.items import EMPTY, BadDocument, Document, Dropped, FileRange
from data_prep.read import read_range
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError

BATCH_CHARACTERS = 1 << 20
"""Text that is cleaned, signed and tokenized at once."""
CONTAMINATED = "shares text with an eval file"


@dataclass(frozen=True, slots=True)
class Read:
    """A document as it was read."""

    document: Document
    size: int
    """UTF-8 bytes."""
    digest: bytes
    """XXH3-128 of the sides, each followed by a NUL, which no text holds; of a plain document of its text alone."""

    @classmethod
    def of(cls, document: Document) -> "Read":
        """With size and digest."""
        if len(document.utf8) == 1:
            content = document.utf8[0]
        else:
            content = b"".join(side + b"\0" for side in document.utf8)
        return cls(document, document.text_bytes, xxhash.xxh3_128_digest(content))

    def with_text(self, text: str) -> "Read":
        """The same document after an edit of its text."""
        return self if text == self.document.sides[0] else Read.of(Document((text,)))


class ContentHash:
    """XXH3-128 over the digests of documents, in order."""

    def __init__(self) -> None:
        self._state = xxhash.xxh3_128()

    def add(self, read: Read) -> None:
        """Takes in the next document."""
        self._state.update(read.digest)

    @property
    def value(self) -> str:
        """32 hexadecimal digits."""
        return self._state.hexdigest()


class Sieve:
    """The cleaning of a preparation, at work."""

    def __init__(self, prepare: PrepareSettings) -> None:
        """Loads what it needs. Raises DataError, ConfigError for a file of words or evals that cannot be read."""
        chain = Chain(prepare.cleaning) if prepare.kind == "text" else None
        self._chain = chain if chain and chain.steps else None
        self._decontaminator = None if prepare.decontamination is None else Decontaminator(prepare.decontamination)

    @property
    def identity(self) -> str:
        """Changes with whatever changes what is kept: settings, versions of the rules, contents of the eval files."""
        parts = (self._chain, self._decontaminator)
        return "/".join("" if part is None else part.identity for part in parts)

    def keep(self, batch: Sequence[Read], counts: Counts) -> list[Read | None]:
        """What is kept of each document, as it is kept; None for those that are left out, which are counted."""
        kept = self._without_eval_text(self._cleaned(batch, counts), counts)
        counts.passed += sum(read is not None for read in kept)
        return kept

    def edit(self, batch: Sequence[Read]) -> Sequence[Read]:
        """Documents that are known to be kept, as they are kept."""
        if self._chain is None:
            return batch
        edited = self._chain.edited_many([read.document.sides[0] for read in batch])
        return [read.with_text(text) for read, text in zip(batch, edited, strict=True)]

    def _cleaned(self, batch: Sequence[Read], counts: Counts) -> list[Read | None]:
        if self._chain is None:
            return list(batch)
        kept: list[Read | None] = []
        results = self._chain.run_many([read.document.sides[0] for read in batch], counts.tally)
        for read, result in zip(batch, results, strict=True):
            if isinstance(result, Removed):
                counts.drop(Dropped(f"{result.step}: {result.rule}"))
                kept.append(None)
            elif not result.text.strip():
                counts.drop(Dropped(EMPTY))
                kept.append(None)
            else:
                kept.append(read.with_text(result.text))
        return kept

    def _without_eval_text(self, batch: list[Read | None], counts: Counts) -> list[Read | None]:
        if self._decontaminator is None:
            return batch
        sides = [(at, side) for at, read in enumerate(batch) if read for side in read.document.sides]
        hits = self._decontaminator.hits([side for _, side in sides])
        for (at, side), hit in zip(sides, hits, strict=True):
            read = batch[at]
            if hit is not None and read is not None:
                counts.drop(Dropped(CONTAMINATED))
                counts.add_contaminated(Example(read.digest.hex(), side[:EXAMPLE_CHARACTERS], why=str(hit)))
                batch[at] = None
        return batch


def batches(files: FileRange, corpus: CorpusSettings, prepare: PrepareSettings, counts: Counts) -> Iterator[list[Read]]:
    """The readable documents of a range, a batch at a time; the rest is counted. Raises DataError, StorageError."""
    batch: list[Read] = []
    size = 0
    for item in read_range(files, corpus, prepare):
        if isinstance(item, Document):
            batch.append(Read.of(item))
            size += batch[-1].size
            if size >= BATCH_CHARACTERS:
                counts.documents += len(batch)
                yield batch
                batch, size = [], 0
        elif isinstance(item, BadDocument):
            counts.add_bad(item)
        else:
            assert isinstance(item, Dropped)
            counts.drop(item)
    counts.documents += len(batch)
    if batch:
        yield batch


@lru_cache(maxsize=1)
def _sieve(settings: str, identity: str) -> Sieve:
    sieve = Sieve(PrepareSettings.model_validate_json(settings))
    if sieve.identity != identity:
        raise DataError(
            "an eval file or a list of words changed while it was being used to clean; run `pretrain prepare` again once it "
            "is at rest"
        )
    return sieve


def sieve_of(prepare: PrepareSettings, identity: str) -> Sieve:
    """The sieve of this process; it is built once, for models and eval files take longer to load than a range to clean.

    Args:
        prepare: the settings.
        identity: of the sieve that is meant.

    Raises DataError where the files that it reads are not those of the identity any more.
    """
    return _sieve(prepare.model_dump_json(), identity)
