"""Preparation from end to end: corpora -> scan -> fates -> tokenizer -> token shards -> manifest.

    report = prepare(config, backend="ray", workers=None, console=Console())

Two passes over the corpus where something needs to have seen everything: deduplication, or a tokenizer to train. The first
reads, cleans and hashes, the second tokenizes; reading twice costs a tenth of tokenizing once. Where neither is asked for, one
pass does it all. Either way tasks run over fixed file ranges, in Ray or, as `local`, in this process or in several.

A finished folder is reused as it is. An unfinished one is taken up where it was left. One that was made with other settings is
refused, with the difference: it may be another run's data. While shards are made, the manifest lists those of the first ranges
(`data_prep.growing`), so that a run can train on them already.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from rich.console import Console
from tokenizers import Tokenizer

from data_prep.cleaning_page import write_cleaning_page
from data_prep.counts import Counts
from data_prep.executors import Executor, InProcess, Processes, available_cores
from data_prep.fates import Survey, decide, scans
from data_prep.folder import (
    CORPUS_NAME,
    QUARANTINE_NAME,
    RECORDS_NAME,
    SIEVE,
    claim,
    finished_manifest,
    locked,
    remove_leftovers,
    write_quarantine,
)
from data_prep.growing import GrowingManifest
from data_prep.items import BadDocument, FileRange
from data_prep.ledger import Ledger
from data_prep.progress import Phases
from data_prep.ranges import plan_sources
from data_prep.ray_tasks import RayTasks
from data_prep.report import PrepareReport
from data_prep.scan import ScanTask, scan_and_keep
from data_prep.shard import ShardResult, ShardTask, shard_and_keep
from data_prep.sieve import Sieve
from data_prep.tokenize import read_tokenizer, special_tokens, token_byte_lengths, vocabulary_size
from data_prep.training_texts import trained_tokenizer
from pretrain.config import RunConfig
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import (
    MANIFEST_FORMAT,
    SPLITS,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    Manifest,
    SplitRecord,
    write_manifest,
)
from pretrain.data.tokenizer_settings import ENGINE_CHOICE
from pretrain.errors import DataError
from pretrain.files import hash_bytes, hash_file, write_atomically

Backend = Literal["ray", "local"]
ONE_PASS_RANGES = 4
"""A corpus of fewer ranges is read twice in any case: of a small one at least one document is held out, which takes a choice."""


def prepare(
    config: RunConfig, backend: Backend, workers: int | None, console: Console, address: str | None = None
) -> PrepareReport:
    """Prepares the data folder of a run; returns at once where it is finished.

    Args:
        config: of the run; its `data` alone is read.
        backend: `ray` (tasks of a Ray cluster on this machine, or of the one that the process is connected to) or `local`.
        workers: tasks at once; None: as many as cores.
        console: for progress.
        address: of a running Ray cluster (`host:port`, `ray://host:port`, `auto`), which is left as it is; None: one is started.

    Raises:
        DataError: the corpus, the folder or a setting does not serve.
        StorageError: a full disk, or a folder that cannot be written.
        RankFault: workers died again and again at the same files, or the head of the cluster did.
    """
    return prepare_data(config.data, backend, workers, console, address)


def prepare_data(
    data: DataSettings, backend: Backend, workers: int | None, console: Console, address: str | None = None
) -> PrepareReport:
    """As `prepare`, from the data part of the config."""
    started = time.monotonic()
    manifest = finished_manifest(data)
    if manifest is not None:
        return PrepareReport.of(data.folder, manifest, "none", started, reused=True)
    assert data.prepare is not None, "finished_manifest raises without it"
    with (
        locked(data.folder),
        _executor(backend, workers, address) as executor,
        Phases(console) as phases,
    ):
        executor.look_at(data.folder)
        work = _Preparation(data.folder, data.folder / CORPUS_NAME, data.prepare, executor, phases)
        manifest, skipped = work.run()
        return PrepareReport.of(
            data.folder, manifest, executor.name, started, tasks_skipped=skipped, deaths=executor.deaths
        )


def prepare_tokenizer(
    data: DataSettings, out: Path, backend: Backend, workers: int | None, console: Console, address: str | None = None
) -> list[str]:
    """Trains the tokenizer that `prepare_data` would, and writes it to a file; the data folder gets no shards.

    Args:
        data: of the run.
        out: the tokenizer.json to write.
        backend: as in `prepare`.
        workers: as in `prepare`.
        console: for progress.
        address: as in `prepare`.

    Returns:
        Lines for people.

    Raises:
        DataError, StorageError, RankFault: as in `prepare`.
    """
    if data.prepare is None:
        raise DataError("data.prepare is not set: it says which corpus a tokenizer is trained on")
    beside = out.absolute().parent  # where every node of a cluster can be asked to see it
    beside.mkdir(parents=True, exist_ok=True)
    with (
        TemporaryDirectory(dir=beside, prefix=".tokenizer-") as scratch,
        _executor(backend, workers, address) as executor,
        Phases(console) as phases,
    ):
        executor.look_at(Path(scratch))
        work = _Preparation(Path(scratch), data.folder / CORPUS_NAME, data.prepare, executor, phases)
        tokenizer = work.tokenizer(None if data.prepare.tokenizer.path else work.survey(work.plan()))
        content = (Path(scratch) / TOKENIZER_NAME).read_bytes()
    write_atomically(out, content)
    return [f"{out}: {vocabulary_size(tokenizer):,} tokens, hash {hash_bytes(content)}"]


class _Preparation:
    """The steps of one preparation, in the order of reading."""

    def __init__(
        self, folder: Path, corpus_folder: Path, prepare: PrepareSettings, executor: Executor, phases: Phases
    ) -> None:
        self.folder, self.corpus_folder, self.prepare = folder.resolve(), corpus_folder, prepare
        self.executor, self.phases = executor, phases
        self.ledger = Ledger(self.folder / RECORDS_NAME)
        self.sieve = Sieve(prepare).identity

    def run(self) -> tuple[Manifest, int]:
        """All steps; returns the manifest, and how many ranges an earlier run had finished."""
        ranges = self.plan()
        survey = self.survey(ranges) if self.needs_two_passes(ranges) else None
        claim(self.folder, self.prepare)
        tokenizer = self.tokenizer(survey)
        return self.shards(ranges, survey, tokenizer)

    def plan(self) -> list[FileRange]:
        """Lists the corpora and cuts them into ranges."""
        with self.phases.phase("listing", None):
            return plan_sources(self.prepare, self.corpus_folder)

    def needs_two_passes(self, ranges: Sequence[FileRange]) -> bool:
        """Whether something needs to have seen everything before a document is written."""
        trained = self.prepare.tokenizer.path is None
        return trained or self.prepare.dedup.method != "none" or len(ranges) < ONE_PASS_RANGES

    def survey(self, ranges: Sequence[FileRange]) -> Survey:
        """The first pass: hashes every document, and decides what becomes of each."""
        tasks = [
            ScanTask(files, self.prepare.sources[files.source], self.prepare, self.sieve, self.ledger.folder)
            for files in ranges
        ]
        todo = [task for task in tasks if self.ledger.find(task.key) is None]
        with self.phases.phase("reading", sum(task.files.size for task in todo)) as progress:
            for at, documents in self.executor.run(scan_and_keep, todo):
                progress.advance(todo[at].files.size, documents)
        self.quarantine(document for _, scan in scans(tasks, self.ledger) for document in scan.counts.bad)
        with self.phases.phase("deciding", None):
            return decide(tasks, self.ledger, self.prepare, self.executor, self.check)

    def quarantine(self, documents: Iterable[BadDocument]) -> None:
        """Lists what could not be read."""
        write_quarantine(self.folder, (asdict(document) for document in documents))

    def check(self, counts: Mapping[str, Counts]) -> None:
        """Raises DataError for damaged files, too many bad documents, or no document at all."""
        total = Counts.sum(counts.values())
        if total.damaged_files and self.prepare.damaged_files == "refuse":
            shown = "; ".join(f"{x.file}, from line {x.line} on: {x.reason}" for x in total.damaged[:3])
            raise DataError(
                f"damaged files, of which only the beginning can be read: {total.damaged_files:,}: {shown}; or set "
                "prepare.damaged_files=keep_beginning to go without it "
                f"(`pretrain prepare` lists them all in {QUARANTINE_NAME} of the data folder)"
            )
        seen = total.documents + total.bad_documents
        if total.bad_documents > self.prepare.bad_document_limit * seen:
            shown = "; ".join(f"{x.file}{f', line {x.line}' if x.line else ''}: {x.reason}" for x in total.bad[:3])
            raise DataError(
                f"{total.bad_documents:,} of {seen:,} documents are bad, over prepare.bad_document_limit="
                f"{self.prepare.bad_document_limit}: {shown}; mend or remove them, or raise the limit "
                f"(`pretrain prepare` lists them all in {QUARANTINE_NAME} of the data folder)"
            )
        if total.passed == 0:
            raise DataError(
                f"prepare.corpus: no document is left after cleaning ({total.dropped or 'the corpus is empty'})"
            )

    def tokenizer(self, survey: Survey | None) -> Tokenizer:
        """The tokenizer of the folder: the one that the config names, the one that is there, or a new one."""
        path, settings = self.folder / TOKENIZER_NAME, self.prepare.tokenizer
        if settings.path is not None:
            tokenizer = read_tokenizer(Path(settings.path).expanduser())
            content = tokenizer.to_str(pretty=True)
            if not path.exists() or path.read_text(encoding="utf-8") != content:
                write_atomically(path, content)
        else:
            assert survey is not None, "a tokenizer that is trained takes two passes"
            tokenizer = trained_tokenizer(path, survey, self.prepare, self.ledger, self.phases)
        write_atomically(self.folder / TOKEN_BYTES_NAME, token_byte_lengths(tokenizer).tobytes())
        return tokenizer

    def shards(self, ranges: Sequence[FileRange], survey: Survey | None, tokenizer: Tokenizer) -> tuple[Manifest, int]:
        """The last pass: writes the shards of every range whose shards are not there, and the manifest."""
        hashes = hash_file(self.folder / TOKENIZER_NAME), _config_hash(self.prepare)
        tasks = _ShardTasks(self, ranges, survey, *hashes)
        found = {place: result for place in range(len(ranges)) if (result := self.result(tasks[place])) is not None}
        growing = GrowingManifest(self.folder, self.base(tokenizer, hashes[0]), found)
        todo = [place for place in range(len(ranges)) if place not in found]
        skipped = len(found)
        del found
        with self.phases.phase("tokenizing", sum(ranges[place].size for place in todo)) as progress:
            for at, result in self.executor.run(shard_and_keep, (tasks[place] for place in todo)):
                growing.add(todo[at], result)
                progress.advance(ranges[todo[at]].size, result.documents)
        return self.finish(growing, survey, tasks), skipped

    def result(self, task: ShardTask) -> ShardResult | None:
        """What an earlier run made, if it is still there."""
        record = self.ledger.find(task.key)
        result = None if record is None else ShardResult.of(record)
        return result if result is not None and result.all_there(self.folder) else None

    def base(self, tokenizer: Tokenizer, tokenizer_hash: str) -> Manifest:
        """The manifest without shards."""
        return Manifest(
            kind=self.prepare.kind,
            vocab_size=vocabulary_size(tokenizer),
            tokenizer_hash=tokenizer_hash,
            special=special_tokens(tokenizer),
            splits={split: SplitRecord.of([]) for split in SPLITS},
            sources=tuple(self.prepare.sources),
            prepare=self.prepare.model_dump(mode="json"),
            complete=False,
        )

    def finish(self, growing: GrowingManifest, survey: Survey | None, tasks: "_ShardTasks") -> Manifest:
        """Writes what makes the folder complete, the manifest last."""
        if survey is None:
            results = (self.result(task) for task in tasks)
            self.quarantine(bad for result in results if result for bad in result.counts.bad)
            self.check(growing.counts)
        counts = growing.counts if survey is None else survey.counts
        write_cleaning_page(self.folder, counts, survey)
        held_against = {SIEVE: self.sieve} if self.sieve.strip("/") else {}
        manifest = growing.finish({**_corpus(counts, survey), **held_against})
        remove_leftovers(self.folder, manifest)
        write_manifest(self.folder, manifest)
        return manifest


class _ShardTasks(Sequence[ShardTask]):
    """The tasks of the last pass, made when they are asked for: a million of them at once would not be small."""

    def __init__(
        self,
        work: _Preparation,
        ranges: Sequence[FileRange],
        survey: Survey | None,
        tokenizer_hash: str,
        config_hash: str,
    ) -> None:
        self._work, self._ranges, self._survey = work, ranges, survey
        self._hashes = tokenizer_hash, config_hash

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, place: int) -> ShardTask:  # type: ignore[override]
        work, files = self._work, self._ranges[place]
        judged = None if self._survey is None else self._survey.judged(place)
        corpus = work.prepare.sources[files.source]
        return ShardTask(
            files, corpus, work.prepare, work.sieve, judged, work.folder, *self._hashes, work.ledger.folder
        )

    def __iter__(self) -> Iterator[ShardTask]:
        return (self[place] for place in range(len(self)))


def _corpus(counts: Mapping[str, Counts], survey: Survey | None) -> dict[str, Any]:
    """What was read and left out, for the manifest: in all, and by source where there are several."""
    parts: dict[str, dict[str, Any]] = {}
    for name, part in counts.items():
        parts[name] = {**part.summary(), "duplicates": survey.duplicates[name] if survey else 0}
        if survey and survey.twins:
            parts[name]["near_duplicates"] = survey.near_duplicates[name]
    found = {**Counts.sum(counts.values()).summary(), **{
        name: sum(part[name] for part in parts.values())
        for name in ("duplicates", "near_duplicates") if any(name in part for part in parts.values())
    }}  # fmt: skip
    return {**dict(sorted(found.items())), **({"sources": parts} if len(parts) > 1 else {})}


def _config_hash(prepare: PrepareSettings) -> str:
    """Of the settings that reach into the bytes of a shard."""
    content = prepare.model_dump_json(
        exclude={"bad_document_limit": True, "damaged_files": True, "tokenizer": ENGINE_CHOICE}
    )
    return hash_bytes(f"{MANIFEST_FORMAT}/{content}".encode())


def _executor(backend: Backend, workers: int | None, address: str | None) -> Executor:
    if backend == "local":
        workers = available_cores() if workers is None else workers
        return InProcess() if workers == 1 else Processes(workers)
    return RayTasks(workers, address)
