"""Preparation from end to end: corpus -> scan -> fates -> tokenizer -> token shards -> manifest.

    report = prepare(config, backend="ray", workers=None, console=Console())

Two passes over the corpus: the first hashes (deduplication and the split need to have seen everything), the second tokenizes.
Reading twice costs a tenth of tokenizing once. Both passes are Ray tasks over fixed file ranges; `local` runs the same
functions in this process, or in several.

A finished folder is reused as it is. An unfinished one is taken up where it was left. One that was made with other settings is
refused, with the difference: it may be another run's data.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from data_prep.dedup import DROPPED, TRAIN, decide_fates
from data_prep.executors import Executor, InProcess, Processes, available_cores
from data_prep.folder import (
    CORPUS_NAME,
    QUARANTINE_NAME,
    RECORDS_NAME,
    claim,
    finished_manifest,
    locked,
    remove_leftovers,
    write_quarantine,
)
from data_prep.items import FileRange
from data_prep.plan import plan_ranges
from data_prep.progress import Phases
from data_prep.ray_tasks import RayTasks
from data_prep.report import PrepareReport
from data_prep.shard import Ledger, Scan, ShardResult, ShardTask, scan_key, scan_range, shard_range, texts_of
from data_prep.tokenize import read_tokenizer, special_tokens, token_byte_lengths, train_tokenizer, vocabulary_size
from pretrain.config import RunConfig
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
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
SHOWN_BAD_DOCUMENTS = 3


def prepare(config: RunConfig, backend: Backend, workers: int | None, console: Console) -> PrepareReport:
    """Prepares the data folder of a run; returns at once where it is finished.

    Args:
        config: of the run; its `data` alone is read.
        backend: `ray` (tasks of a Ray cluster on this machine, or of the one that the process is connected to) or `local`.
        workers: tasks at once; None: as many as cores.
        console: for progress.

    Raises:
        DataError: the corpus, the folder or a setting does not serve.
        StorageError: a full disk, or a folder that cannot be written.
        RankFault: a worker died.
    """
    return prepare_data(config.data, backend, workers, console)


def prepare_data(data: DataSettings, backend: Backend, workers: int | None, console: Console) -> PrepareReport:
    """As `prepare`, from the data part of the config."""
    started = time.monotonic()
    manifest = finished_manifest(data)
    if manifest is not None:
        return PrepareReport.of(data.folder, manifest, "none", started, reused=True)
    assert data.prepare is not None, "finished_manifest raises without it"
    with locked(data.folder), _executor(backend, workers) as executor, Phases(console) as phases:
        return _Preparation(data.folder, data.folder / CORPUS_NAME, data.prepare, executor, phases).run(started)


def prepare_tokenizer(
    data: DataSettings, out: Path, backend: Backend, workers: int | None, console: Console
) -> list[str]:
    """Trains the tokenizer that `prepare_data` would, and writes it to a file; the data folder gets no shards.

    Args:
        data: of the run.
        out: the tokenizer.json to write.
        backend: as in `prepare`.
        workers: as in `prepare`.
        console: for progress.

    Returns:
        Lines for people.

    Raises:
        DataError, StorageError, RankFault: as in `prepare`.
    """
    if data.prepare is None:
        raise DataError("data.prepare is not set: it says which corpus a tokenizer is trained on")
    with TemporaryDirectory() as scratch, _executor(backend, workers) as executor, Phases(console) as phases:
        work = _Preparation(Path(scratch), data.folder / CORPUS_NAME, data.prepare, executor, phases)
        tokenizer = work.tokenizer(work.survey())
        content = (Path(scratch) / TOKENIZER_NAME).read_bytes()
    write_atomically(out, content)
    return [f"{out}: {vocabulary_size(tokenizer):,} tokens, hash {hash_bytes(content)}"]


@dataclass(frozen=True)
class _Survey:
    """The corpus as the first pass saw it, range by range."""

    ranges: Sequence[FileRange]
    scans: Sequence[Scan]
    fates: Sequence[np.ndarray]
    corpus: Mapping[str, Any]
    """Counts for the manifest."""

    def __iter__(self) -> Iterator[tuple[FileRange, Scan, np.ndarray]]:
        return zip(self.ranges, self.scans, self.fates, strict=True)


class _Preparation:
    """The steps of one preparation, in the order of reading."""

    def __init__(
        self, folder: Path, corpus_folder: Path, prepare: PrepareSettings, executor: Executor, phases: Phases
    ) -> None:
        self.folder, self.corpus_folder, self.prepare = folder, corpus_folder, prepare
        self.executor, self.phases = executor, phases
        self.ledger = Ledger(folder / RECORDS_NAME)

    def run(self, started: float) -> PrepareReport:
        """All steps."""
        survey = self.survey()
        claim(self.folder, self.prepare)
        tokenizer = self.tokenizer(survey)
        results, skipped = self.shards(survey)
        manifest = self.finish(tokenizer, results, survey.corpus)
        return PrepareReport.of(self.folder, manifest, self.executor.name, started, tasks_skipped=skipped)

    def survey(self) -> _Survey:
        """Lists the corpus, hashes its documents, and decides what becomes of each."""
        ranges = plan_ranges(self.prepare.sources["main"], self.corpus_folder, self.prepare.task_bytes)
        scans = self.scan(ranges)
        write_quarantine(self.folder, [asdict(document) for scan in scans for document in scan.bad])
        corpus = self.check(scans)
        fates = decide_fates(np.concatenate([scan.keys for scan in scans]), self.prepare.validation_fraction)
        corpus["duplicates"] = int((fates == DROPPED).sum())
        by_range = np.split(fates, np.cumsum([len(scan.keys) for scan in scans])[:-1])
        return _Survey(ranges, scans, by_range, dict(sorted(corpus.items())))

    def scan(self, ranges: Sequence[FileRange]) -> list[Scan]:
        """Hashes every document of the corpus."""
        keys = [scan_key(files, self.prepare) for files in ranges]
        found = {place: Scan.from_json(text) for place, key in enumerate(keys) if (text := self.ledger.find(key))}
        todo = [place for place in range(len(ranges)) if place not in found]
        with self.phases.phase("reading", sum(ranges[place].size for place in todo)) as progress:
            tasks = [(ranges[place], self.prepare) for place in todo]
            for at, scan in self.executor.run(_scan, tasks):
                self.ledger.keep(keys[todo[at]], scan.to_json())
                found[todo[at]] = scan
                progress.advance(ranges[todo[at]].size, len(scan.keys))
        return [found[place] for place in range(len(ranges))]

    def check(self, scans: Sequence[Scan]) -> dict[str, Any]:
        """Counts documents. Raises DataError for too many bad ones, or for no document at all."""
        bad = [document for scan in scans for document in scan.bad]
        documents = sum(len(scan.keys) for scan in scans)
        dropped: dict[str, int] = {}
        for scan in scans:
            for reason, count in scan.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        seen = documents + len(bad)
        if len(bad) > self.prepare.bad_document_limit * seen:
            shown = "; ".join(
                f"{x.file}{f', line {x.line}' if x.line else ''}: {x.reason}" for x in bad[:SHOWN_BAD_DOCUMENTS]
            )
            raise DataError(
                f"{len(bad):,} of {seen:,} documents are bad, over prepare.bad_document_limit="
                f"{self.prepare.bad_document_limit}: {shown}; mend or remove them, or raise the limit "
                f"(`pretrain prepare` lists them all in {QUARANTINE_NAME} of the data folder)"
            )
        if documents == 0:
            raise DataError(f"prepare.corpus: no document is left after cleaning ({dropped or 'the corpus is empty'})")
        return {"documents": documents, "bad_documents": len(bad), "dropped": dict(sorted(dropped.items()))}

    def tokenizer(self, survey: _Survey) -> Tokenizer:
        """The tokenizer of the folder: the one that is there, the one that the config names, or a new one."""
        path, settings = self.folder / TOKENIZER_NAME, self.prepare.tokenizer
        if settings.path is not None:
            tokenizer = read_tokenizer(Path(settings.path).expanduser())
            write_atomically(path, tokenizer.to_str(pretty=True))
            return tokenizer
        source = [scan.content + hash_bytes(part.tobytes()) for _, scan, part in survey]
        key = hash_bytes(
            json.dumps(["tokenizer", source, settings.model_dump(exclude=ENGINE_CHOICE)], sort_keys=True).encode()
        )
        known = self.ledger.find(key)
        if known is None or not path.exists() or hash_file(path) != json.loads(known):
            with self.phases.phase("training the tokenizer", None):
                texts = _training_texts(survey, self.prepare)
                content = train_tokenizer(texts, settings).to_str(pretty=True)
            write_atomically(path, content)
            self.ledger.keep(key, json.dumps(hash_bytes(content.encode())))
        return Tokenizer.from_file(str(path))

    def shards(self, survey: _Survey) -> tuple[list[ShardResult], int]:
        """Tokenizes what an earlier run has not; results in the order of the ranges, and how many were there."""
        tokenizer_hash = hash_file(self.folder / TOKENIZER_NAME)
        config_hash = _config_hash(self.prepare)
        tasks = [
            ShardTask(files, self.prepare, scan.content, part, self.folder.resolve(), tokenizer_hash, config_hash)
            for files, scan, part in survey
        ]
        found: dict[int, ShardResult] = {}
        for place, task in enumerate(tasks):
            text = self.ledger.find(task.key)
            if text is not None and _all_there(self.folder, result := ShardResult.from_json(text)):
                found[place] = result
        skipped = len(found)
        todo = [place for place in range(len(tasks)) if place not in found]
        if todo:
            (self.folder / MANIFEST_NAME).unlink(missing_ok=True)  # a folder with a manifest is complete
        with self.phases.phase("tokenizing", sum(tasks[place].files.size for place in todo)) as progress:
            for at, result in self.executor.run(shard_range, [tasks[place] for place in todo]):
                place = todo[at]
                self.ledger.keep(tasks[place].key, result.to_json())
                found[place] = result
                progress.advance(tasks[place].files.size, int((tasks[place].fates != DROPPED).sum()))
        return [found[place] for place in range(len(tasks))], skipped

    def finish(self, tokenizer: Tokenizer, results: Sequence[ShardResult], corpus: Mapping[str, Any]) -> Manifest:
        """Writes what makes the folder complete, the manifest last."""
        write_atomically(self.folder / TOKEN_BYTES_NAME, token_byte_lengths(tokenizer).tobytes())
        manifest = Manifest(
            kind=self.prepare.kind,
            vocab_size=vocabulary_size(tokenizer),
            tokenizer_hash=hash_file(self.folder / TOKENIZER_NAME),
            special=special_tokens(tokenizer),
            splits={split: SplitRecord.of([s for result in results for s in result.shards[split]]) for split in SPLITS},
            prepare=self.prepare.model_dump(mode="json"),
            corpus=corpus,
        )
        remove_leftovers(self.folder, manifest)
        write_manifest(self.folder, manifest)
        return manifest


def _scan(task: tuple[FileRange, PrepareSettings]) -> Scan:
    return scan_range(*task)


def _all_there(folder: Path, result: ShardResult) -> bool:
    shards = [shard for split in SPLITS for shard in result.shards[split]]
    return all((folder / s.file).is_file() and (folder / s.file).stat().st_size == s.file_bytes for s in shards)


def _config_hash(prepare: PrepareSettings) -> str:
    """Of the settings that reach into the bytes of a shard."""
    content = prepare.model_dump(mode="json", exclude={"bad_document_limit": True, "tokenizer": ENGINE_CHOICE})
    return hash_bytes(json.dumps([MANIFEST_FORMAT, content], sort_keys=True).encode())


def _training_texts(survey: _Survey, prepare: PrepareSettings) -> Iterator[str]:
    """About `training_bytes` of training documents, drawn by their hash; of a very large corpus from every k-th range."""
    total = sum(int(scan.sizes[fates == TRAIN].sum()) for _, scan, fates in survey)
    share = prepare.tokenizer.training_bytes / max(total, 1)
    # Documents are spread over all ranges; reading a tenth of the ranges for a hundredth of the text is even enough.
    stride = min(max(int(0.1 / share), 1), len(survey.ranges))
    limit = np.uint64(min(int(share * stride * 2**64), 2**64 - 1))
    for files, scan, fates in list(survey)[::stride]:
        yield from texts_of(files, prepare, (fates == TRAIN) & (scan.keys[:, 0]["low"] <= limit))


def _executor(backend: Backend, workers: int | None) -> Executor:
    workers = available_cores() if workers is None else workers
    if backend == "local":
        return InProcess() if workers == 1 else Processes(workers)
    return RayTasks(workers)
