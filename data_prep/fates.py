"""What becomes of each document, decided by the driver from what the first pass found.

Memory of the driver: 16 bytes a key (a document has one, a pair two) while it is decided, then one byte a document. Signatures,
512 bytes a document, lie in a file that is mapped; shingles of candidates are read again by tasks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from data_prep.cleaning.tally import EXAMPLE_CHARACTERS
from data_prep.counts import Counts
from data_prep.dedup import DROPPED, fates_of, first_of_equal, held_out_of
from data_prep.executors import Executor
from data_prep.ledger import Ledger, Record
from data_prep.minhash import SIGNATURE_VERSION
from data_prep.near_duplicates import find_twins
from data_prep.scan import Scan, ScanTask
from data_prep.shard import Judged, texts_of
from data_prep.shingles import shingle_sets
from pretrain.data.dedup_settings import DedupSettings
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError
from pretrain.files import hash_bytes, told_as_storage_error

REREAD_TASKS = 64
"""Ranges whose shingles are held at once while candidates are compared."""


@dataclass(frozen=True)
class TwinExample:
    """Two documents that resemble each other, for people."""

    similarity: float
    dropped: str
    kept: str


@dataclass(frozen=True)
class NearDuplicates:
    """What the search for near-duplicates found."""

    drop: np.ndarray
    """(M,) bool, of the documents that passed cleaning."""
    summary: Mapping[str, int]
    examples: tuple[TwinExample, ...]


@dataclass(frozen=True)
class Survey:
    """The corpus as the first pass saw it, in the order of the plan. N documents can be read, M of them pass cleaning."""

    tasks: Sequence[ScanTask]
    contents: Sequence[str]
    """Hash of the documents of each range."""
    starts: np.ndarray
    """(R + 1,) int64: the first document of each range."""
    fates: np.ndarray
    """(N,) uint8."""
    counts: Mapping[str, Counts]
    """By source."""
    duplicates: Mapping[str, int]
    """Documents that are left out for an equal one, by source."""
    near_duplicates: Mapping[str, int]
    """By source; empty where they were not looked for."""
    twins: NearDuplicates | None

    def judged(self, place: int) -> Judged:
        """What was decided about a range."""
        return Judged(self.contents[place], self.fates[self.starts[place] : self.starts[place + 1]])

    @property
    def hash(self) -> str:
        """XXH3-128 of all documents and their fates."""
        return hash_bytes("".join(self.judged(place).hash for place in range(len(self.tasks))).encode())


@dataclass(frozen=True)
class _Passed:
    """The M documents that passed cleaning, over all ranges."""

    tasks: Sequence[ScanTask]
    starts: np.ndarray
    """(R + 1,) int64: the first of each range."""
    documents: np.ndarray
    """(R + 1,) int64: the first readable document of each range."""
    passed: np.ndarray
    """(N,) bool."""
    keys: np.ndarray
    """(M, K)."""
    ledger: Ledger

    def texts(self, rows: np.ndarray) -> Iterator["TextTask"]:
        """Tasks that read some of the M rows, ascending."""
        places = np.searchsorted(self.starts, rows, side="right") - 1
        for place in np.unique(places).tolist():
            within = rows[places == place] - self.starts[place]
            passed = np.flatnonzero(self.passed[self.documents[place] : self.documents[place + 1]])
            wanted = np.zeros(int(self.documents[place + 1] - self.documents[place]), dtype=bool)
            wanted[passed[within]] = True
            yield TextTask(self.tasks[place], wanted)


@dataclass(frozen=True)
class TextTask:
    """Some documents of a range."""

    scan: ScanTask
    wanted: np.ndarray
    """(N,) bool."""

    def texts(self) -> list[str]:
        """Their texts, as they are kept. Raises DataError where files changed since they were scanned."""
        found = list(texts_of(self.scan, self.wanted))
        if len(found) != int(self.wanted.sum()):
            raise DataError(
                f"{self} changed while it was being prepared; run `pretrain prepare` again once it is at rest"
            )
        return found

    def __str__(self) -> str:
        return str(self.scan)


def shingles_of(task: TextTask) -> list[np.ndarray]:
    """The shingles of some documents, one set each."""
    return shingle_sets(task.texts(), task.scan.prepare.dedup.shingle_words)


def records(tasks: Iterable[ScanTask], ledger: Ledger) -> Iterator[tuple[ScanTask, Record]]:
    """The records of the first pass, one at a time. Raises DataError where one was lost meanwhile."""
    for task in tasks:
        record = ledger.find(task.key)
        if record is None:
            raise DataError(f"{ledger.folder}: the record of {task} is gone or damaged; run `pretrain prepare` again")
        yield task, record


def scans(tasks: Iterable[ScanTask], ledger: Ledger) -> Iterator[tuple[ScanTask, Scan]]:
    """The results of the first pass, one at a time, without signatures. Raises DataError as `records` does."""
    return ((task, Scan.of(record)) for task, record in records(tasks, ledger))


def decide(
    tasks: Sequence[ScanTask],
    ledger: Ledger,
    prepare: PrepareSettings,
    executor: Executor,
    check: Callable[[Mapping[str, Counts]], None],
) -> Survey:
    """Decides the fate of every document of the first pass.

    Args:
        tasks: of the first pass, all of them finished.
        ledger: where their results are.
        prepare: the settings.
        executor: reads candidates for near-duplicates again.
        check: raises where the counts, by source, forbid going on.
    """
    found, contents, counts = _gathered(tasks, ledger, prepare)
    check(counts)
    kept = np.ones(len(found.keys), bool) if prepare.dedup.method == "none" else first_of_equal(found.keys)
    equal = ~kept
    twins = (
        _near_duplicates(found, contents, kept, prepare.dedup, executor) if prepare.dedup.method == "minhash" else None
    )
    if twins is not None:
        kept &= ~twins.drop
    fates = np.full(len(found.passed), DROPPED, np.uint8)
    fates[found.passed] = fates_of(kept, held_out_of(found.keys[:, 0], kept, prepare.validation_fraction))
    return Survey(
        tasks,
        contents,
        found.documents,
        fates,
        counts,
        _by_source(found, equal, prepare),
        {} if twins is None else _by_source(found, twins.drop, prepare),
        twins,
    )


def _gathered(
    tasks: Sequence[ScanTask], ledger: Ledger, prepare: PrepareSettings
) -> tuple[_Passed, list[str], dict[str, Counts]]:
    """What the ranges hold, put together: documents, the hash of each range, counts by source."""
    contents: list[str] = []
    passed: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    counts = {name: Counts() for name in prepare.sources}
    for task, scan in scans(tasks, ledger):
        contents.append(scan.content)
        passed.append(scan.passed)
        keys.append(scan.keys)
        counts[task.files.source].merge(scan.counts)
    found = _Passed(tasks, _starts(keys), _starts(passed), np.concatenate(passed), np.concatenate(keys), ledger)
    return found, contents, counts


def _starts(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)


def _by_source(found: _Passed, chosen: np.ndarray, prepare: PrepareSettings) -> dict[str, int]:
    sums = dict.fromkeys(prepare.sources, 0)
    for place, task in enumerate(found.tasks):
        sums[task.files.source] += int(np.count_nonzero(chosen[found.starts[place] : found.starts[place + 1]]))
    return sums


def _near_duplicates(
    found: _Passed, contents: Sequence[str], kept: np.ndarray, settings: DedupSettings, executor: Executor
) -> NearDuplicates:
    """Those of the last run over the same documents, or new ones; reading candidates again takes minutes on a large corpus."""
    known = [
        hash_bytes(found.keys.tobytes()),
        *contents,
        settings.model_dump_json(),
        SIGNATURE_VERSION,
        found.tasks[0].sieve,
    ]
    key = hash_bytes("/".join(["near-duplicates", *known]).encode())
    record = found.ledger.find(key)
    if record is None:
        made = _find_near_duplicates(found, kept, settings, executor)
        values = {"summary": dict(made.summary), "examples": [asdict(example) for example in made.examples]}
        found.ledger.keep(key, values, drop=np.packbits(made.drop))
        return made
    drop = np.unpackbits(record.arrays["drop"], count=len(kept)).astype(bool)
    examples = tuple(TwinExample(**example) for example in record.values["examples"])
    return NearDuplicates(drop, record.values["summary"], examples)


def _find_near_duplicates(
    found: _Passed, kept: np.ndarray, settings: DedupSettings, executor: Executor
) -> NearDuplicates:
    def reread(rows: np.ndarray) -> Iterator[np.ndarray]:
        waiting = list(found.texts(rows))
        for first in range(0, len(waiting), REREAD_TASKS):
            results = dict(executor.run(shingles_of, waiting[first : first + REREAD_TASKS]))
            for place in sorted(results):
                yield from results[place]

    with TemporaryDirectory(dir=found.ledger.folder) as folder:
        twins = find_twins(_mapped_signatures(found, settings, Path(folder) / "signatures"), kept, settings, reread)
    examples = twins.examples()
    rows = np.unique(np.array([row for example in examples for row in (example.dropped, example.kept)], np.int64))
    texts = dict(zip(rows.tolist(), (text for task in found.texts(rows) for text in task.texts()), strict=True))
    shown = tuple(
        TwinExample(e.similarity, texts[e.dropped][:EXAMPLE_CHARACTERS], texts[e.kept][:EXAMPLE_CHARACTERS])
        for e in examples
    )
    return NearDuplicates(twins.drop, twins.summary(), shown)


def _mapped_signatures(found: _Passed, settings: DedupSettings, path: Path) -> np.ndarray:
    """(M, P) uint32, in a file."""
    shape = (len(found.keys), settings.permutations)
    if not shape[0]:
        return np.empty(shape, np.uint32)
    with (
        told_as_storage_error(path),
        path.open("wb") as file,
    ):  # a map that outgrows the disk would end the process instead
        for _, record in records(found.tasks, found.ledger):
            file.write(record.arrays["signatures"].tobytes())
    return np.memmap(path, np.uint32, "r", shape=shape)
