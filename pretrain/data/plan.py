"""Plan: the sample at every position of a run, as a pure function of position, settings and shards.

    plan = build_plan(data, manifest, seed)
    sources, epochs, windows = plan.samples(start, count)

`mixture` says which source a position belongs to and how many samples of it came before; `source_order` which window of the
source that is. Nothing is stored and nothing is drawn in sequence: the state of a run is the position and the plan's hash. A
data rank's slice of a global batch is arithmetic, so a run goes on at any data-parallel size, and what was in a step is
answered at once.

The hash covers shards, tokenizer, sequence length, seed, blend and order. Under `order.method: eras` it covers the shards of
the eras that were begun, and no more: it is the same while the folder grows and when it is finished, and a source that got more
shards behind those that were read is no change. No torch here: the command answers questions about a plan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from pretrain.data.left_out import left_out
from pretrain.data.manifest import Manifest, SplitRecord
from pretrain.data.mixture import Mixture, Stage, integer_weights
from pretrain.data.order_settings import OrderSettings
from pretrain.data.sample_order import plan_hash
from pretrain.data.settings import DataSettings
from pretrain.data.source_order import ErasOfSource, SourceOrder, shuffled_source
from pretrain.errors import ConfigError, DataError
from pretrain.files import hash_bytes


@dataclass(frozen=True)
class PlanSource:
    """One source as a plan sees it."""

    name: str
    shards: SplitRecord
    samples: int
    """Of an epoch: windows, or rows of pairs. While the source grows: those whose place is certain, a multiple of the era."""
    complete: bool = True
    """False while more shards may come."""


@dataclass(frozen=True)
class Origin:
    """Where a plan takes over from another one: see `plan_segments`."""

    position: int = 0
    """The position in the run's own blend from which on it holds."""
    taken: Mapping[str, int] = field(default_factory=dict)
    """Samples that each source had given by then."""


@dataclass(frozen=True)
class Plan:
    """Which sample stands where."""

    sources: tuple[PlanSource, ...]
    stages: tuple[Stage, ...]
    sequence_length: int
    era: int | None
    """Samples of an era; None: every source is shuffled as a whole."""
    seed: int
    facts: Mapping[str, Any]
    """All that the order depends on, the shards aside."""
    origin: Origin = Origin()

    @cached_property
    def mixture(self) -> Mixture:
        """Which source stands where."""
        return Mixture(self.stages)

    @cached_property
    def _orders(self) -> tuple[SourceOrder | None, ...]:
        return tuple(self._order(source) if source.samples else None for source in self.sources)

    def _order(self, source: PlanSource) -> SourceOrder:
        # A single source keeps the order that it had before there were several.
        purpose = "train" if len(self.sources) == 1 else f"train/source={source.name}"
        if self.era is None:
            return shuffled_source(source.samples, self.seed, purpose)
        return ErasOfSource(source.samples, self.era, self.seed, purpose)

    @cached_property
    def _offsets(self) -> tuple[int, ...]:
        before = self.mixture.counts(self.origin.position)
        return tuple(self.origin.taken.get(s.name, 0) - b for s, b in zip(self.sources, before, strict=True))

    def counts(self, n: int) -> dict[str, int]:
        """Samples that each source has given at positions below n, those of earlier segments of the run included."""
        found = zip(self.sources, self.mixture.counts(n), self._offsets, strict=True)
        return {source.name: count + offset for source, count, offset in found}

    def epochs(self, n: int) -> dict[str, float]:
        """Passes over each source at position n; of sources that are complete and not empty."""
        counts = self.counts(n)
        return {s.name: counts[s.name] / s.samples for s in self.sources if s.complete and s.samples}

    def samples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(count,) int16 sources, (count,) int64 epochs, (count,) int64 windows at positions start .. start + count - 1.

        The sources must be known so far: see `missing`.
        """
        return self._samples(*self.mixture.slots(start, count))

    def ranges(self, starts: Sequence[int], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Sources and windows of several ranges of `count` positions, which ascend; cheaper than one call each."""
        joined = starts[-1] - starts[0] == (len(starts) - 1) * count
        slots = [
            self.mixture.slots(start, width)
            for start, width in ([(starts[0], len(starts) * count)] if joined else [(start, count) for start in starts])
        ]
        sources, _, windows = self._samples(*(np.concatenate(part) for part in zip(*slots, strict=True)))
        parts = range(0, len(windows), count)
        return [(sources[at : at + count], windows[at : at + count]) for at in parts]

    def _samples(self, sources: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epochs, windows = np.empty(len(sources), np.int64), np.empty(len(sources), np.int64)
        for number in range(len(self.sources)):
            at = np.flatnonzero(sources == number) if len(self.sources) > 1 else np.arange(len(sources))
            order = self._orders[number]
            if len(at):
                assert order is not None, f"source {self.sources[number].name} is empty"
                positions = numbers[at] + self._offsets[number]
                windows[at] = order.samples_at(positions)
                epochs[at] = positions // order.size
        return sources, epochs, windows

    def sample(self, n: int) -> tuple[int, int, int]:
        """Number of the source, epoch and window at position n."""
        source, epoch, window = self.samples(n, 1)
        return int(source[0]), int(epoch[0]), int(window[0])

    def missing(self, stop: int) -> str | None:
        """The first source that is still growing and not far enough for the positions below `stop`; None: all are known."""
        if all(source.complete for source in self.sources):
            return None
        counts = self.counts(stop)
        return next((s.name for s in self.sources if not s.complete and counts[s.name] > s.samples), None)

    def hash_at(self, n: int) -> str:
        """The fingerprint of the order as far as the positions below n depend on it."""
        counts = self.counts(n)
        shards = {source.name: self._shards_hash(source, counts[source.name]) for source in self.sources}
        return plan_hash({**self.facts, "shards": shards})

    def _shards_hash(self, source: PlanSource, count: int) -> str:
        hashes = source.shards.column("hash")
        if self.era is not None and (count <= source.samples or not source.complete):
            # The tokens of the eras that were begun, and the one behind them, which is their last label.
            tokens = -(-count // self.era) * self.era * self.sequence_length + 1 if count else 0
            starts = np.concatenate([[0], np.cumsum(source.shards.column("tokens"))[:-1]]) if len(hashes) else hashes
            hashes = hashes[: int(np.searchsorted(starts, tokens))] if len(hashes) else hashes
        return hash_bytes(np.ascontiguousarray(hashes).tobytes())

    def as_of(self, facts: Mapping[str, Any]) -> "Plan":
        """The plan that these facts describe, over the same shards and windows of the same length.

        Raises DataError where an earlier version dealt the slots, in an order that is no longer known.
        """
        blend = facts["stages"]
        stages = _by_size(self.sources) if blend is None else tuple(Stage(n, tuple(weights)) for n, weights in blend)
        if facts.get("dealing") != _dealing(stages).get("dealing"):
            raise DataError(
                "the samples of these steps were dealt to more than four sources as an earlier version of pretrain did; use that "
                "version to trace them"
            )
        return replace(self, stages=stages, era=facts["era"], seed=facts["seed"], facts=facts)

    def from_origin(self, origin: Origin) -> "Plan":
        """The plan as it goes on from another one."""
        return replace(self, origin=origin)


def causal_samples(record: SplitRecord, sequence_length: int) -> int:
    """Whole windows of a stream: each takes its tokens and the one behind them."""
    return max(record.tokens - 1, 0) // sequence_length


def build_plan(
    data: DataSettings,
    manifest: Manifest,
    seed: int,
    facts: Mapping[str, Any],
    samples: Mapping[str, int] | None = None,
) -> Plan:
    """The plan of a training split.

    Args:
        data: of the run.
        manifest: of the data folder.
        seed: of the run.
        facts: what the rows of a window depend on beside the shards.
        samples: of each source, where they are not windows of tokens.

    Raises:
        ConfigError: weights name no source of the folder, or leave one out.
        DataError: a source that is asked for has not one sample.
    """
    era = max(data.order.era_tokens // data.sequence_length, 1) if data.order.method == "eras" else None
    sources = []
    for name in manifest.sources:
        record = manifest.source("train", name)
        count = causal_samples(record, data.sequence_length) if samples is None else samples[name]
        if not manifest.complete and era is not None:
            count = count // era * era
        sources.append(PlanSource(name, record, count, manifest.complete))
    check_weights(data, manifest)
    stages = _stages(data, sources)
    _check_sizes(data, manifest, sources, stages)
    by_size = data.order.weights is None and not data.order.stages
    return Plan(
        sources=tuple(sources),
        stages=stages,
        sequence_length=data.sequence_length,
        era=era,
        seed=seed,
        facts={
            **facts,
            "tokenizer": manifest.tokenizer_hash,
            "seed": seed,
            "sources": list(manifest.sources),
            "stages": None if by_size else [[stage.length, list(stage.weights)] for stage in stages],
            "era": era,
            **_dealing(stages),
        },
    )


def _dealing(stages: Sequence[Stage]) -> dict[str, str]:
    """A fact on how slots are dealt, where it is another way than there was at first: the hashes of other plans stay."""
    return {"dealing": "windows"} if any(stage.is_windowed for stage in stages) else {}


def _blends(order: OrderSettings) -> list[tuple[str, Mapping[str, float]]]:
    """The blends of a config, each with the field that holds it."""
    if order.stages:
        return [(f"data.order.stages.{number}.weights", stage.weights) for number, stage in enumerate(order.stages)]
    return [] if order.weights is None else [("data.order.weights", order.weights)]


def check_weights(data: DataSettings, manifest: Manifest) -> None:
    """Raises ConfigError for names that are no source, for sources without a weight, and where a blend is missing."""
    blends, sources = _blends(data.order), manifest.sources
    for place, weights in blends:
        strays = [name for name in weights if name not in sources]
        if strays:
            raise ConfigError(
                f"{place}.{strays[0]}: no source of {data.dir}, which has {', '.join(sources)}; name one of them"
            )
    named = {name for _, weights in blends for name in weights}
    left_out = [name for name in sources if name not in named]
    if blends and left_out:
        raise ConfigError(
            f"{blends[0][0]}: {data.dir} has the source {left_out[0]} too, which no blend names; "
            "give it a weight, 0 to leave it out"
        )
    if not blends and len(sources) > 1 and not manifest.complete:
        raise ConfigError(
            f"data.order.weights is null, but {data.dir} is still growing: how much its sources {', '.join(sources)} will "
            "have is not known yet; give their shares in data.order.weights"
        )


def _stages(data: DataSettings, sources: Sequence[PlanSource]) -> tuple[Stage, ...]:
    names = [source.name for source in sources]
    if data.order.stages:
        stages, tokens, done = [], 0, 0
        for stage in data.order.stages:
            tokens += stage.tokens or 0
            end = tokens // data.sequence_length
            length = None if stage.tokens is None else end - done
            stages.append(Stage(length, integer_weights([stage.weights.get(name, 0.0) for name in names])))
            done = end
        return tuple(stages)
    if data.order.weights is not None:
        return (Stage(None, integer_weights([data.order.weights.get(name, 0.0) for name in names])),)
    return _by_size(sources)


def _by_size(sources: Sequence[PlanSource]) -> tuple[Stage, ...]:
    if len(sources) == 1:
        return (Stage(None, (1,)),)
    sizes = tuple(source.samples for source in sources)
    return (Stage(None, sizes if any(sizes) else tuple(1 for _ in sizes)),)


def _check_sizes(
    data: DataSettings, manifest: Manifest, sources: Sequence[PlanSource], stages: Sequence[Stage]
) -> None:
    """Raises DataError for a source that is asked for and will never have a sample."""
    for number, source in enumerate(sources):
        asked = any(stage.weights[number] for stage in stages)
        if not asked or source.samples or not source.complete:
            continue
        which = "the training split" if len(sources) == 1 else f"the training split of source {source.name}"
        why = left_out(manifest, source.name) or "prepare a larger corpus, or lower data.sequence_length"
        raise DataError(f"{data.dir}: {which} is shorter than one sequence of {data.sequence_length} tokens; {why}")


def check_epochs(data: DataSettings, plan: Plan, total: int) -> tuple[str, ...]:
    """Sentences on sources that are read more than once in a run of `total` samples.

    Raises DataError where one is read more often than `data.order.max_epochs` allows.
    """
    told = []
    for name, epochs in plan.epochs(total).items():
        size = next(source.samples for source in plan.sources if source.name == name)
        count = plan.counts(total)[name]
        figures = f"source {name} has {size:,} samples and is asked for {count:,}: {epochs:.3g} epochs"
        if data.order.max_epochs is not None and epochs > data.order.max_epochs:
            raise DataError(
                f"{data.dir}: {figures}, but data.order.max_epochs={data.order.max_epochs:g}; lower its weight to "
                f"{data.order.max_epochs / epochs:.3g} of what it is, shorten the run, prepare more of it, or raise the limit"
            )
        if epochs > 1 and len(plan.sources) > 1:
            told.append(figures)
    return tuple(told)
