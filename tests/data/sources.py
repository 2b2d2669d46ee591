"""Data folders of several sources that grow shard by shard, as preparation fills them."""

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from pretrain.data.follow import LOCK_NAME
from pretrain.data.manifest import Manifest, ShardRecord, Split, SplitRecord, token_dtype, write_manifest
from pretrain.data.shard_file import write_shard
from tests.data.folders import ORIGIN, SPECIAL, TOKENIZER, TOKENIZER_HASH, Documents, text_documents

TASKS = 6
"""Ranges of input of each source; a range makes a shard of either split."""


class GrowingFolder:
    """A folder whose shards are written at once and listed when `publish` says so."""

    def __init__(self, folder: Path, sources: Mapping[str, int], tasks: int = TASKS) -> None:
        """Writes the shards of some sources, each with so many documents a range."""
        self.folder, self.sources, self.tasks = folder, tuple(sources), tasks
        self._shards: dict[tuple[str, Split], list[ShardRecord]] = {}
        for number, (name, documents) in enumerate(sources.items()):
            counts: dict[Split, int] = {"train": documents, "validation": 3}
            for split, count in counts.items():
                self._shards[name, split] = [
                    self._write(name, split, number * tasks + at, text_documents(count, seed=100 * number + at))
                    for at in range(tasks)
                ]
        (folder / "tokenizer.json").write_bytes(TOKENIZER)

    def _write(self, source: str, split: Split, task: int, documents: Documents) -> ShardRecord:
        stored = [[*document, SPECIAL.end_of_text] for document in documents]
        record = write_shard(
            self.folder,
            f"{split}/{task:06d}-000.tokens",
            np.concatenate([np.array(ids) for ids in stored]).astype(token_dtype(100)),
            np.array([len(ids) for ids in stored]),
            text_bytes=sum(len(ids) for ids in stored),
            origin=ORIGIN,
        )
        return replace(record, source=source)

    def publish(self, tasks: Mapping[str, int] | int) -> Manifest:
        """Lists the first ranges of each source; all of them: the folder is complete."""
        known = dict.fromkeys(self.sources, tasks) if isinstance(tasks, int) else tasks
        splits: dict[Split, SplitRecord] = {
            split: SplitRecord.of(
                [shard for name in self.sources for shard in self._shards[name, split][: known[name]]]
            )
            for split in ("train", "validation")
        }
        complete = all(count == self.tasks for count in known.values())
        manifest = Manifest("text", 100, TOKENIZER_HASH, SPECIAL, splits, sources=self.sources, complete=complete)
        write_manifest(self.folder, manifest)
        return manifest

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """While a preparation holds the folder's lock."""
        with (self.folder / LOCK_NAME).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
