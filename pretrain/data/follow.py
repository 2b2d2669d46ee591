"""Follow: reading a data folder that `pretrain prepare` is still filling.

Shards are only ever added behind those of their source, and the manifest is replaced whole, so each reading of it is one state of
the folder. What a rank reads does not depend on when it looks: the order of an era depends on the era's shards alone
(`source_order`), and a rank waits until they are there. Nothing is agreed upon between ranks; each looks for itself.

Whether preparation is alive is told by the lock that it holds on the folder. Alternative not taken: a time limit on waiting; how
long an era takes is for the corpus to say.
"""

import fcntl
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Event

import numpy as np

from pretrain.data.manifest import MANIFEST_NAME, Manifest, ShardRecord, SplitRecord, read_manifest
from pretrain.data.settings import DataSettings
from pretrain.errors import DataError

LOCK_NAME = ".lock"
"""Held by a preparation at work."""
POLL_S = 1.0
TELL_S = 30.0
"""Between two looks at the folder, and between two lines on the same wait; the first comes with the wait's fifth look."""
BEGIN_POLLS = 60
"""Looks before a folder that nobody has begun with is given up: the preparation may just be starting."""
DEAD_POLLS = 5
"""Looks in a row that must find the lock free: a preparation that is started again holds none for a moment."""


def silent(_: str) -> None:
    """Tells nobody."""


class Starved(DataError):
    """Nothing prepares the folder any more, and a run needs more of it."""


class Waiting(Exception):
    """The wait was called off."""


def open_manifest(data: DataSettings) -> Manifest:
    """The manifest of a run's data folder. Raises DataError where it is unfinished and the config does not follow it."""
    manifest = read_manifest(data.folder)
    if not manifest.complete and data.manifest == "finished":
        raise DataError(
            f"{data.dir}: preparation has not finished; let `pretrain prepare` end (the same command goes on where it stopped), "
            "or train while it runs: data.manifest=follow with data.order.method=eras"
        )
    return manifest


def wait_for_manifest(
    data: DataSettings, tell: Callable[[str], None], *, sleep: Callable[[float], None] = time.sleep
) -> Manifest:
    """The manifest of a folder that preparation may just have begun with. Raises DataError where none is at work."""
    polls, dead = 0, 0
    while data.manifest == "follow" and dead < BEGIN_POLLS and not (data.folder / MANIFEST_NAME).exists():
        dead = dead + 1 if not _is_locked(data.folder) else 0
        polls += 1
        if polls % round(TELL_S / POLL_S) == DEAD_POLLS:
            tell(f"waiting for the first shards of {data.folder}")
        sleep(POLL_S)
    return open_manifest(data)


def wait_for_growth(
    folder: Path,
    seen: Manifest,
    what: str,
    tell: Callable[[str], None],
    cancelled: Event,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> Manifest:
    """The next state of a growing folder.

    Args:
        folder: the data folder.
        seen: its state so far, which is not complete.
        what: that is waited for, for the user.
        tell: a line for the user.
        cancelled: ends the wait.
        sleep: waits some seconds.

    Raises:
        Starved: nothing prepares the folder any more, though it is not complete.
        Waiting: it was called off.
    """
    polls, dead = 0, 0
    while not cancelled.is_set():
        # Before the manifest is read: who let go of the lock wrote it first.
        dead = dead + 1 if not _is_locked(folder) else 0
        manifest = read_manifest(folder)
        if manifest.complete or _shards(manifest) != _shards(seen):
            return manifest
        if dead >= DEAD_POLLS:
            raise Starved(
                f"{folder}: preparation has stopped before its end, and training needs {what}; start `pretrain prepare` with the "
                "same config again, it goes on where it stopped, and continue the run"
            )
        polls += 1
        if polls % round(TELL_S / POLL_S) == DEAD_POLLS:
            tell(f"waiting for {what}: preparation of {folder} has not come so far")
        sleep(POLL_S)
    raise Waiting


def _shards(manifest: Manifest) -> dict[str, int]:
    return {name: len(manifest.source("train", name)) for name in manifest.sources}


def _is_locked(folder: Path) -> bool:
    """Whether a preparation is at work."""
    try:
        with (folder / LOCK_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def wait_for_first_era(
    folder: Path, manifest: Manifest, era_tokens: int, tell: Callable[[str], None], cancelled: Event
) -> Manifest:
    """A state of the folder in which every source has its first era, or all that it will have. Raises DataError, Waiting."""
    while not manifest.complete and any(manifest.source("train", n).tokens < era_tokens for n in manifest.sources):
        manifest = wait_for_growth(folder, manifest, "the first era of every source", tell, cancelled)
    return manifest


def first_era_validation(manifest: Manifest, era_tokens: int) -> Manifest:
    """The manifest with the validation shards alone that were made of the same ranges of input as the first era of each source.

    They are there as soon as the era is, and the same whenever one looks. Raises DataError where there is none.
    """
    kept: list[ShardRecord] = []
    for name in manifest.sources:
        train = manifest.source("train", name)
        starts = np.cumsum(train.column("tokens")) - train.column("tokens")
        used = int(np.searchsorted(starts, era_tokens))
        last = max((_range(train.shard(index)) for index in range(used)), default=-1)
        validation = manifest.source("validation", name).shards
        kept += [shard for shard in validation if _range(shard) <= last]
    if not sum(shard.documents for shard in kept):
        raise DataError(
            "no validation document comes from the inputs of the first era, and data.manifest=follow validates on these alone; "
            "raise data.prepare.validation_fraction or data.order.era_tokens"
        )
    return replace(manifest, splits={**manifest.splits, "validation": SplitRecord.of(kept)})


def _range(shard: ShardRecord) -> int:
    """Number of the range of input that a shard was made of, which its name begins with. Raises DataError."""
    try:
        return int(PurePosixPath(shard.file).stem.split("-")[0])
    except ValueError:
        raise DataError(
            f"{shard.file}: its name does not begin with the number of its inputs, which data.manifest=follow needs"
        ) from None
