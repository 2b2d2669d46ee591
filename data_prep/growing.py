"""The manifest of a folder that grows: a run may train on the first shards while the next ones are made.

Published is always a prefix of the plan: the longest row of ranges, from the first on, whose shards are all there. What a prefix
holds depends on the plan alone, whoever finished first; only how long it is at a moment depends on time. Ranges of several
sources are interleaved in the plan by their sizes, so every source grows. A range that is done out of turn waits for those before
it, which are under way. Alternative not taken: listing whatever is done (a follower's order of samples would then be one of
timing).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.counts import Counts
from data_prep.shard import ShardResult
from pretrain.data.token_shards import SPLITS, Manifest, ShardRecord, Split, SplitRecord, write_manifest

PUBLISH_INTERVAL_S = 10.0
"""Between two manifests; a run that waits for shards looks for them about as often."""
SHARE_OF_TIME = 0.02
"""Of the driver's time goes into manifests at most: one of 37,000 shards takes a second to write."""


class GrowingManifest:
    """Collects the results of tasks and publishes the manifest of those that count."""

    def __init__(
        self,
        folder: Path,
        base: Manifest,
        found: Mapping[int, ShardResult],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Publishes what is there already.

        Args:
            folder: the data folder.
            base: the manifest without shards.
            found: results of an earlier run, by their place in the plan.
            clock: seconds.
        """
        self._folder, self._base, self._clock = folder, base, clock
        self._waiting = dict(found)
        self._next = 0
        self._records: dict[Split, list[ShardRecord]] = {split: [] for split in SPLITS}
        self.counts: dict[str, Counts] = {name: Counts() for name in base.sources}
        """What the prefix read, by source; empty where a first pass counted it."""
        self._published = -1
        self._pause = PUBLISH_INTERVAL_S
        self._advance()
        self._publish()

    def add(self, place: int, result: ShardResult) -> None:
        """A task is done."""
        self._waiting[place] = result
        self._advance()
        if self._next > self._published and self._clock() - self._last >= self._pause:
            self._publish()

    def finish(self, corpus: Mapping[str, Any]) -> Manifest:
        """The complete manifest, for `write_manifest`; every result was added."""
        assert not self._waiting, "a task is missing"
        return replace(self._manifest(), corpus=corpus, complete=True)

    def _advance(self) -> None:
        while (result := self._waiting.pop(self._next, None)) is not None:
            for split in SPLITS:
                self._records[split] += result.shards[split]
            self.counts[result.source].merge(result.counts)
            self._next += 1

    def _publish(self) -> None:
        started = self._clock()
        write_manifest(self._folder, self._manifest())
        self._published, self._last = self._next, self._clock()
        self._pause = max(PUBLISH_INTERVAL_S, (self._last - started) / SHARE_OF_TIME)

    def _manifest(self) -> Manifest:
        splits: dict[Split, SplitRecord] = {split: SplitRecord.of(self._records[split]) for split in SPLITS}
        return replace(self._base, splits=splits, complete=False)
