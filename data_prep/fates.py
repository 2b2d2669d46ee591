"""What becomes of each document, decided by the driver from what the first pass found.

Memory in the driver: 16 bytes a key (documents have one, pairs two) while it is decided, then one byte a document. Signatures of
near-duplicate search, 512 bytes a document, lie in a file that is mapped.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from data_prep.counts import Counts
from data_prep.dedup import DROPPED, TRAIN, decide_fates
from data_prep.ledger import Ledger
from data_prep.read import FileRange
from data_prep.scan import Scan, ScanTask
from data_prep.shard import Judged
from pretrain.data.prepare_settings import PrepareSettings
from pretrain.errors import DataError
from pretrain.files import hash_bytes


@dataclass(frozen=True)
class Survey:
    """The corpus as the first pass saw it, in the order of the plan."""

    tasks: Sequence[ScanTask]
    contents: Sequence[str]
    """Hash of the documents of each range."""
    starts: np.ndarray
    """(R + 1,) int64: the first document of each range."""
    fates: np.ndarray
    """(N,) uint8 of every readable document."""
    counts: Mapping[str, Counts]
    """By source."""
    duplicates: Mapping[str, int]
    """Documents left out for an equal earlier one, by source."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def judged(self, place: int) -> Judged:
        """What was decided about a range."""
        return Judged(self.contents[place], self.fates[self.starts[place] : self.starts[place + 1]])

    @property
    def hash(self) -> str:
        """XXH3-128 of all documents and fates."""
        return hash_bytes("".join(self.judged(place).hash for place in range(len(self.tasks))).encode())

    @property
    def train_bytes(self) -> int:
        raise NotImplementedError


def scans(tasks: Sequence[ScanTask], ledger: Ledger) -> Iterator[tuple[ScanTask, Scan]]:
    """The results of the first pass, one at a time. Raises DataError where a record was lost meanwhile."""
    for task in tasks:
        record = ledger.find(task.key)
        if record is None:
            raise DataError(f"{ledger.folder}: the record of {task} is gone or damaged; run `pretrain prepare` again")
        yield task, Scan.of(record)
