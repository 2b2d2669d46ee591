"""Feed: the rows of any range of a run's samples.

It joins the plan (which sample stands where) with the objective (what a sample looks like), within the segment of the run that
is under way; where the data folder still grows, it waits for what it is asked for. It has no state but what it has read of the
folder.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np

from pretrain.data.follow import open_manifest, silent, wait_for_growth
from pretrain.data.manifest import Manifest
from pretrain.data.objectives import Objective, Rows, build_objective
from pretrain.data.plan import Plan, build_plan
from pretrain.data.plan_segments import PlanSegment
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards


@dataclass(frozen=True)
class _State:
    """The folder as it was last read."""

    manifest: Manifest
    streams: tuple[TokenShards, ...]
    objective: Objective
    plan: Plan


class Feed:
    """Rows by number of the sample; for one reader at a time."""

    def __init__(self, data: DataSettings, seed: int, tell: Callable[[str], None] = silent) -> None:
        """Opens the training split.

        Args:
            data: of the run.
            seed: of the run.
            tell: takes a line on a wait.

        Raises:
            DataError: the folder is missing, damaged, unfinished, of the wrong kind, or smaller than one sequence.
            ConfigError: weights and sources do not fit.
        """
        self._data, self._seed, self._tell = data, seed, tell
        self._segment: PlanSegment | None = None
        manifest = open_manifest(data)
        streams = tuple(_open(data, manifest, name) for name in manifest.sources)
        self._state = self._built(manifest, streams)

    def _built(self, manifest: Manifest, streams: tuple[TokenShards, ...]) -> _State:
        objective = build_objective(self._data, *streams)
        samples = None
        if self._data.objective == "seq2seq":
            samples = dict(zip(manifest.sources, objective.source_samples, strict=True))
        plan = build_plan(self._data, manifest, self._seed, objective.facts, samples)
        return _State(manifest, streams, objective, self._placed(plan))

    def _placed(self, plan: Plan) -> Plan:
        return plan if self._segment is None else plan.from_origin(self._segment.origin)

    @property
    def plan(self) -> Plan:
        """As far as it is known."""
        return self._state.plan

    @property
    def objective(self) -> Objective:
        """What makes the rows."""
        return self._state.objective

    @property
    def folder(self) -> Path:
        """Of the data."""
        return self._data.folder

    @property
    def streams(self) -> tuple[TokenShards, ...]:
        """Of the sources."""
        return self._state.streams

    @property
    def vocab_size(self) -> int:
        """Special tokens included."""
        return self._state.manifest.vocab_size

    @property
    def segment(self) -> PlanSegment:
        """The segment of the run that is under way."""
        assert self._segment is not None, "no segment was entered"
        return self._segment

    def enter(self, segment: PlanSegment) -> "Feed":
        """Reads on in a segment."""
        self._segment = segment
        state = self._state
        self._state = _State(state.manifest, state.streams, state.objective, self._placed(state.plan))
        return self

    def recall(self, segment: PlanSegment) -> "Feed":
        """Reads as in an earlier segment of the run, which may have had another blend, order or seed."""
        self.enter(segment)
        state = self._state
        plan = state.plan.as_of(segment.facts).from_origin(segment.origin)
        self._state = _State(state.manifest, state.streams, state.objective, plan)
        return self

    def await_position(self, stop: int, cancelled: Event) -> None:
        """Waits until the plan knows all positions below `stop`. Raises DataError, Waiting."""
        while (name := self.plan.missing(stop)) is not None:
            source = f"more of source {name}" if len(self.plan.sources) > 1 else "more of the data"
            grown = wait_for_growth(self._data.folder, self._state.manifest, source, self._tell, cancelled)
            streams = tuple(stream.grown(grown) for stream in self._state.streams)
            self._state = self._built(grown, streams)

    def places(
        self, ranges: Sequence[int], count: int, cancelled: Event | None = None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each range of `count` samples that begins at one of these, (count,) sources and (count,) windows."""
        segment = self.segment
        starts = [segment.place(first) for first in ranges]
        self.await_position(starts[0] + count, cancelled or Event())
        return self.plan.ranges([start for start in starts if self.plan.missing(start + count) is None], count)

    def counts(self, sample: int) -> Mapping[str, int]:
        """Samples of each source among those of the run below `sample`."""
        return self.plan.counts(self.segment.place(sample))

    def hash_at(self, sample: int) -> str:
        """Fingerprint of the order as far as the samples below depend on it."""
        return self.plan.hash_at(self.segment.place(sample))

    def fill(self, place: tuple[np.ndarray, np.ndarray], rows: Rows) -> None:
        """Fills rows with the windows of a place that `places` gave. Raises DataError for damage."""
        sources, windows = place
        if rows.sources is not None:
            rows.sources[:] = sources
        self.objective.fill(windows, rows, sources if len(self.plan.sources) > 1 else None)


def _open(data: DataSettings, manifest: Manifest, source: str) -> TokenShards:
    shards = TokenShards(data.folder, manifest, "train", data.verify, source)
    if data.verify == "open":
        shards.check_all()
    return shards
