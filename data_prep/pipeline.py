"""Preparation from end to end: corpus -> scan -> fates -> tokenizer -> token shards -> manifest.

    report = prepare(config, backend="ray", workers=None, console=Console())

Two passes over the corpus: the first hashes (deduplication and the split need to have seen everything), the second tokenizes.
Reading twice costs a tenth of tokenizing once. Both passes are Ray tasks over fixed file ranges; `local` runs the same
functions in this process, or in several. Ray Data is not used for the work: it moves every row through its object store, at a
fifth of the speed of tasks that read and write files themselves.

A finished folder is reused as it is. An unfinished one is taken up where it was left. One that was made with other settings is
refused, with the difference: it may be another run's data. `ray` is imported in this file alone, when it is asked for.
"""

import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import numpy as np
from rich.console import Console
from tokenizers import Tokenizer

from data_prep.dedup import DROPPED, TRAIN, decide_fates
from data_prep.executors import Executor, InProcess, Processes, Result, Task, available_cores, one_thread
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
from data_prep.plan import plan_ranges
from data_prep.progress import Phases
from data_prep.read import FileRange
from data_prep.report import PrepareReport
from data_prep.shard import Ledger, Scan, ShardResult, ShardTask, scan_key, scan_range, shard_range, texts_of
from data_prep.tokenize import read_tokenizer, special_tokens, token_byte_lengths, train_tokenizer, vocabulary_size
from pretrain.config import RunConfig
from pretrain.data.settings import DataSettings, PrepareSettings
from pretrain.data.token_shards import (
    MANIFEST_FORMAT,
    MANIFEST_NAME,
    SPLITS,
    TOKEN_BYTES_NAME,
    TOKENIZER_NAME,
    Manifest,
    SplitRecord,
)
from pretrain.errors import DataError, RankFault
from pretrain.files import hash_bytes, hash_file, write_atomically

Backend = Literal["ray", "local"]
OBJECT_STORE_BYTES = 128 << 20
"""Tasks hand over settings and hashes, never text: the store needs to hold a few megabytes."""
TASKS_IN_FLIGHT_PER_CORE = 4
START_ATTEMPTS = 3
"""Ray gives its own processes 30 s to come up, which a busy machine exceeds at times."""
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
        claim(data.folder, data.prepare)
        return _Preparation(data.folder, data.prepare, executor, phases).run(started)


class _Preparation:
    """The steps of one preparation, in the order of reading."""

    def __init__(self, folder: Path, prepare: PrepareSettings, executor: Executor, phases: Phases) -> None:
        self.folder, self.prepare, self.executor, self.phases = folder, prepare, executor, phases
        self.ledger = Ledger(folder / RECORDS_NAME)

    def run(self, started: float) -> PrepareReport:
        """All steps."""
        ranges = plan_ranges(self.prepare.corpus, self.folder / CORPUS_NAME, self.prepare.task_bytes)
        scans = self.scan(ranges)
        corpus = self.check(scans)
        keys = np.concatenate([scan.keys for scan in scans])
        fates = decide_fates(keys, self.prepare.validation_fraction)
        corpus["duplicates"] = int((fates == DROPPED).sum())
        by_range = np.split(fates, np.cumsum([len(scan.keys) for scan in scans])[:-1])
        tokenizer = self.tokenizer(ranges, scans, by_range)
        results, skipped = self.shards(ranges, scans, by_range)
        manifest = self.finish(tokenizer, results, corpus)
        return PrepareReport.of(self.folder, manifest, self.executor.name, started, tasks_skipped=skipped)

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
        """Quarantines bad documents; counts. Raises DataError for too many of them, or for no document at all."""
        bad = [document for scan in scans for document in scan.bad]
        write_quarantine(self.folder, [asdict(document) for document in bad])
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
                f"{self.prepare.bad_document_limit}: {shown}; all are listed in {self.folder / QUARANTINE_NAME}; "
                "mend or remove them, or raise the limit"
            )
        if documents == 0:
            raise DataError(f"prepare.corpus: no document is left after cleaning ({dropped or 'the corpus is empty'})")
        return {"documents": documents, "bad_documents": len(bad), "dropped": dict(sorted(dropped.items()))}

    def tokenizer(self, ranges: Sequence[FileRange], scans: Sequence[Scan], fates: Sequence[np.ndarray]) -> Tokenizer:
        """The tokenizer of the folder: the one that is there, the one that the config names, or a new one."""
        path, settings = self.folder / TOKENIZER_NAME, self.prepare.tokenizer
        if settings.path is not None:
            tokenizer = read_tokenizer(Path(settings.path).expanduser())
            write_atomically(path, tokenizer.to_str(pretty=True))
            return tokenizer
        source = [scan.content + hash_bytes(part.tobytes()) for scan, part in zip(scans, fates, strict=True)]
        key = hash_bytes(json.dumps(["tokenizer", source, settings.model_dump()], sort_keys=True).encode())
        known = self.ledger.find(key)
        if known is None or not path.exists() or hash_file(path) != json.loads(known):
            with self.phases.phase("training the tokenizer", None):
                texts = _training_texts(ranges, scans, fates, self.prepare)
                content = train_tokenizer(texts, settings).to_str(pretty=True)
            write_atomically(path, content)
            self.ledger.keep(key, json.dumps(hash_bytes(content.encode())))
        return Tokenizer.from_file(str(path))

    def shards(
        self, ranges: Sequence[FileRange], scans: Sequence[Scan], fates: Sequence[np.ndarray]
    ) -> tuple[list[ShardResult], int]:
        """Tokenizes what an earlier run has not; results in the order of the ranges, and how many were there."""
        tokenizer_hash = hash_file(self.folder / TOKENIZER_NAME)
        config_hash = _config_hash(self.prepare)
        tasks = [
            ShardTask(files, self.prepare, scan.content, part, self.folder.resolve(), tokenizer_hash, config_hash)
            for files, scan, part in zip(ranges, scans, fates, strict=True)
        ]
        found: dict[int, ShardResult] = {}
        for place, task in enumerate(tasks):
            text = self.ledger.find(task.key)
            if text is not None and _all_there(self.folder, result := ShardResult.from_json(text)):
                found[place] = result
        skipped = len(found)
        todo = [place for place in range(len(tasks)) if place not in found]
        with self.phases.phase("tokenizing", sum(ranges[place].size for place in todo)) as progress:
            for at, result in self.executor.run(shard_range, [tasks[place] for place in todo]):
                place = todo[at]
                self.ledger.keep(tasks[place].key, result.to_json())
                found[place] = result
                progress.advance(ranges[place].size, int((fates[place] != DROPPED).sum()))
        return [found[place] for place in range(len(tasks))], skipped

    def finish(self, tokenizer: Tokenizer, results: Sequence[ShardResult], corpus: Mapping[str, Any]) -> Manifest:
        """Writes what makes the folder complete, the manifest last."""
        write_atomically(self.folder / TOKEN_BYTES_NAME, token_byte_lengths(tokenizer).tobytes())
        manifest = Manifest(
            kind=self.prepare.corpus.kind,
            vocab_size=vocabulary_size(tokenizer),
            tokenizer_hash=hash_file(self.folder / TOKENIZER_NAME),
            special=special_tokens(tokenizer),
            splits={
                split: SplitRecord(tuple(s for result in results for s in result.shards[split])) for split in SPLITS
            },
            prepare=self.prepare.model_dump(mode="json"),
            corpus=corpus,
        )
        remove_leftovers(self.folder, manifest)
        write_atomically(self.folder / MANIFEST_NAME, manifest.to_json())
        return manifest


def _scan(task: tuple[FileRange, PrepareSettings]) -> Scan:
    return scan_range(*task)


def _all_there(folder: Path, result: ShardResult) -> bool:
    shards = [shard for split in SPLITS for shard in result.shards[split]]
    return all((folder / s.file).is_file() and (folder / s.file).stat().st_size == s.file_bytes for s in shards)


def _config_hash(prepare: PrepareSettings) -> str:
    """Of the settings that reach into the bytes of a shard."""
    content = prepare.model_dump(mode="json", exclude={"bad_document_limit"})
    return hash_bytes(json.dumps([MANIFEST_FORMAT, content], sort_keys=True).encode())


def _training_texts(
    ranges: Sequence[FileRange], scans: Sequence[Scan], fates: Sequence[np.ndarray], prepare: PrepareSettings
) -> Iterator[str]:
    """About `training_bytes` of training documents, drawn by their hash; of a very large corpus from every k-th range."""
    total = sum(int(scan.sizes[part == TRAIN].sum()) for scan, part in zip(scans, fates, strict=True))
    share = prepare.tokenizer.training_bytes / max(total, 1)
    # Documents are spread over all ranges; reading a tenth of the ranges for a hundredth of the text is even enough.
    stride = min(max(int(0.1 / share), 1), len(ranges))
    limit = np.uint64(min(int(share * stride * 2**64), 2**64 - 1))
    for files, scan, part in list(zip(ranges, scans, fates, strict=True))[::stride]:
        yield from texts_of(files, prepare, (part == TRAIN) & (scan.keys[:, 0]["low"] <= limit))


# --- Ray --------------------------------------------------------------------------------------------------------------


def _executor(backend: Backend, workers: int | None) -> Executor:
    workers = available_cores() if workers is None else workers
    if backend == "local":
        return InProcess() if workers == 1 else Processes(workers)
    try:
        import ray  # noqa: F401
    except ImportError:
        raise DataError("the ray backend needs Ray: pip install 'ray', or use --backend local") from None
    return RayTasks(workers)


class RayTasks:
    """Tasks of a Ray cluster: the one that this process is connected to, else one of its own on this machine.

    Its own is reached from this machine alone and with a token that no one else has; it reports no usage, shows no dashboard,
    and ends with the preparation, its logs included.
    """

    def __init__(self, workers: int) -> None:
        self.name = f"ray, {workers} workers"
        self._workers = workers
        self._owned = ExitStack()

    def __enter__(self) -> Self:
        with self._owned as owned:
            owned.enter_context(_ray_environment())
            import ray

            if not ray.is_initialized():
                folder = owned.enter_context(TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
                owned.callback(ray.shutdown)
                self._start(folder)
            self._owned = owned.pop_all()
        return self

    def _start(self, folder: str) -> None:
        """Starts a cluster of its own. Raises RankFault where Ray does not come up."""
        import ray

        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                ray.init(
                    address="local",
                    num_cpus=self._workers,
                    num_gpus=0,
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                    _temp_dir=folder,
                )
                return
            except Exception as error:  # a plain Exception, RuntimeError or ValueError, whatever part of it failed
                ray.shutdown()
                if attempt == START_ATTEMPTS:
                    raise RankFault(
                        f"Ray does not start ({str(error).splitlines()[0]}); run it again, or with --backend local"
                    ) from error

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """See Executor."""
        import ray
        import ray.exceptions

        remote = ray.remote(num_cpus=1, max_retries=3)(_call)
        waiting = iter(enumerate(tasks))
        running: dict[Any, int] = {}

        def submit() -> None:
            for place, task in waiting:
                running[remote.remote(function, task)] = place
                if len(running) >= TASKS_IN_FLIGHT_PER_CORE * self._workers:
                    return

        submit()
        while running:
            done, _ = ray.wait(list(running), num_returns=1)
            place = running.pop(done[0])
            try:
                yield place, ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise RankFault(
                    f"a Ray worker of the preparation died ({type(error).__name__}); finished tasks are kept: "
                    "run it again, with fewer workers, or with --backend local"
                ) from error
            submit()

    def __exit__(self, *details: Any) -> None:
        self._owned.close()


@contextmanager
def _ray_environment() -> Iterator[None]:
    """What ray.init has no argument for, as variables of this process and its children; put back at the end."""
    names = ("RAY_USAGE_STATS_ENABLED", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    before = {name: os.environ.get(name) for name in names}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # Without it, Ray's servers on Linux listen on every address, whatever node address they are given.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_TOKEN"] = _ray_token()
    if "ray" not in sys.modules:  # it reads the mode when it is imported; once it is, ray.init turns tokens on itself
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@cache
def _ray_token() -> str:
    """The secret of this process's Ray clusters; one for all of them, for Ray keeps the first one it sees."""
    return secrets.token_hex(32)


def _call(function: Callable[[Task], Result], task: Task) -> Result:
    one_thread()
    return function(task)
