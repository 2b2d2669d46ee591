"""Which shards a range of positions reads: arithmetic on the plan and the table of shards, no shard is opened."""

from collections.abc import Sequence

import numpy as np

from pretrain.data.manifest import Manifest
from pretrain.data.plan import Plan


class NeededShards:
    """The shards behind a plan of windows of tokens."""

    def __init__(self, plan: Plan, manifest: Manifest) -> None:
        self._plan = plan
        self._records = [manifest.source("train", source.name) for source in plan.sources]
        self._starts = [np.concatenate([[0], np.cumsum(record.column("tokens"))]) for record in self._records]

    def files(self, position: int, count: int) -> Sequence[str]:
        """Files of the shards that samples position .. position + count - 1 read, in the order of their first use; of a folder
        that grows, none where a source is not far enough."""
        if self._plan.missing(position + count) is not None:
            return ()
        sources, _, windows = self._plan.samples(position, count)
        firsts = windows * self._plan.sequence_length
        lasts = firsts + self._plan.sequence_length  # with the label of its last token
        found: dict[tuple[int, int], None] = {}
        for number in range(len(self._records)):
            mine = sources == number
            starts = self._starts[number]
            first, last = (starts.searchsorted(at[mine], side="right") - 1 for at in (firsts, lasts))
            # Few windows cross from one shard to the next, and a window may cross several short ones.
            crossing = np.flatnonzero(first != last)
            rows = [first, *(np.arange(first[at], last[at] + 1) for at in crossing)]
            at = np.unique(np.concatenate(rows), return_index=True)
            found.update(dict.fromkeys((number, int(row)) for row in at[0][np.argsort(at[1], kind="stable")]))
        return [self._records[number].shard(row).file for number, row in found]
