"""Runs cases in worlds that stay up, and holds each against the float64 reference.

The reference starts from the weights that one process draws, with every vector moved off 0 and 1; it is run once for all layouts
that train the same. Its tolerance is the published one (verdict.BOUNDS) in fp32. In bf16 and fp16 it is NOISE_FACTOR times what
one process shows against the reference at that precision, or times the type's rounding error where that one process happened
to be luckier: a layout may sum in another order, but not lose more than that.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeVar

from torch import Tensor

from pretrain.config import RunConfig
from pretrain.parity.batches import BatchMaker
from pretrain.parity.layouts import STEPS_BEHIND, LayoutCase, plain
from pretrain.parity.ranks import DeviceKind, RanksFailed, World
from pretrain.parity.recording import record, reference_run
from pretrain.parity.reference_training import ReferenceRun
from pretrain.parity.verdict import BOUNDS, Quantity, Recording, Verdict, compare, failed, whole_tensors

Kept = TypeVar("Kept")

NOISE_FACTOR = 3.0
"""Of a layout's deviation in bf16 or fp16 over one process's: maxima over thousands of rounded values scatter by about 2."""
ROUTED_NOISE_FACTOR = 10.0
"""The same with experts: rounding sends a token near a tie elsewhere, and each layout rounds otherwise."""
ROUNDING = {"fp32": 0.0, "bf16": 2.0**-9, "fp16": 2.0**-12}
"""Largest relative error of one rounding. fp32 has published tolerances."""
_ROUNDED: tuple[Quantity, ...] = ("auxiliary", "grad_norm", "gradients", "parameters")
"""What one process may hit by luck. The losses are means over many tokens, whose noise is the same in every run."""
CAP = 20.0
"""Of measured over published tolerances in fp32: beyond it one process itself is wrong."""
NUDGES = 4
"""Trainings of one process from weights that differ in the last bit, where a random case in fp32 is beyond its tolerance."""
TIE = 1e-5
"""Margin of the experts' scores, in one of the reference's steps, below which rounding may choose others."""
_NOISY: tuple[Quantity, ...] = (
    "loss",
    "objective",
    "z_loss",
    "auxiliary",
    "grad_norm",
    "gradients",
    "parameters",
    "evaluation",
)


@dataclass(frozen=True)
class Proof:
    """What came of one case."""

    case: LayoutCase
    verdict: Verdict
    bounds: Mapping[Quantity, float]
    seconds: float
    clipped: bool
    """Whether every step was."""
    story: str = ""
    """Of the ranks, where one raised, died or hung."""
    margin: float = math.inf
    """Least margin by which experts were chosen, in fp32 scores."""
    noise: Mapping[Quantity, float] = field(default_factory=dict)
    """Tolerances by what one process shows alone, however much that is; beyond them, from weights that are nudged, too."""

    @property
    def failed(self) -> set[Quantity]:
        """Quantities beyond their tolerance; empty too where ranks told a story instead."""
        return failed(self.verdict, self.bounds)

    @property
    def passed(self) -> bool:
        """Whether the layout trains the same model."""
        return not self.story and not self.failed

    @property
    def word(self) -> str:
        """The verdict."""
        if self.story:
            return "ranks failed"
        if not self.failed:
            return "same model"
        if self.margin < TIE:
            return "tie"
        # A gradient that all but cancels: one process is as far from the reference, and says so itself.
        return "ill-conditioned" if self.noise and not failed(self.verdict, self.noise) else "differs"


@dataclass(frozen=True)
class _Trace:
    """A training in one process at one precision."""

    initial: dict[str, Tensor]
    recording: Recording


@dataclass
class Prover:
    """Worlds of ranks, one for each size, and the references that were run. Use as a context manager."""

    device: DeviceKind = "cpu"
    steps: int = 5
    timeout_s: float = 600.0
    tolerance: Literal["published", "measured"] = "published"
    """In fp32; see the heads of this file and of fuzz.py."""
    world_of: Callable[[int], World] | None = None
    """Gives the world of a size, where somebody else keeps them."""
    _worlds: dict[int, World] = field(default_factory=dict)
    _traces: dict[str, _Trace] = field(default_factory=dict)
    _references: dict[str, ReferenceRun] = field(default_factory=dict)

    def __enter__(self) -> "Prover":
        return self

    def __exit__(self, *_: object) -> None:
        for world in self._worlds.values():
            world.close()

    def prove(self, case: LayoutCase) -> Proof:
        """Runs a case, and one process and the reference where they were not run yet."""
        start = time.monotonic()
        try:
            verdict, bounds, noise = self._judge(case.config)
            if not ROUNDING[case.config.train.precision] and noise and failed(verdict, noise):
                noise = self.with_nudges(case.config, noise)
        except RanksFailed as error:
            return Proof(case, {}, BOUNDS, time.monotonic() - start, True, str(error))
        steps, clip = self._reference(case.config).steps, case.config.optimizer.clip_norm
        clipped = clip is not None and all(step.grad_norm > clip for step in steps)
        margin = min(step.margin for step in steps)
        return Proof(case, verdict, bounds, time.monotonic() - start, clipped, margin=margin, noise=noise)

    def forget(self) -> None:
        """Drops references and traces: the next cases train other models."""
        self._traces.clear()
        self._references.clear()

    def _judge(self, config: RunConfig) -> tuple[Verdict, Mapping[Quantity, float], Mapping[Quantity, float]]:
        reference = self._reference(config)
        one = self._trace(config, config.train.precision)
        alone = config == plain(config, config.train.precision)
        recordings = [one.recording] if alone else self._record(config)
        verdict = compare(recordings, one.initial, reference, config.model, config.optimizer)
        return verdict, *self._bounds(config, one, reference, alone)

    def _bounds(
        self, config: RunConfig, one: _Trace, reference: ReferenceRun, alone: bool
    ) -> tuple[Mapping[Quantity, float], Mapping[Quantity, float]]:
        """What a layout is held against, and what one process shows; nothing of the latter where it judges itself."""
        rounding = ROUNDING[config.train.precision]
        if not rounding and self.tolerance == "published":
            return BOUNDS, {}
        noise = compare([one.recording], one.initial, reference, config.model, config.optimizer)
        factor = ROUTED_NOISE_FACTOR if rounding and config.model.moe is not None else NOISE_FACTOR
        bounds, uncapped = dict(BOUNDS), dict(BOUNDS)
        for quantity in _NOISY:
            measured = max(noise[quantity].value, rounding if quantity in _ROUNDED else 0.0)
            highest = math.inf if rounding else CAP * BOUNDS[quantity]
            uncapped[quantity] = max(BOUNDS[quantity], factor * measured)
            bounds[quantity] = min(uncapped[quantity], highest)
        return bounds, {} if alone else uncapped

    def with_nudges(self, config: RunConfig, noise: Mapping[Quantity, float]) -> Mapping[Quantity, float]:
        """The tolerances, widened by what the last bit of the weights does to one process: one run may be lucky."""
        one, reference = self._trace(config, config.train.precision), self._reference(config)
        widened = dict(noise)
        for seed in range(NUDGES):
            nudged = self._record(plain(config, config.train.precision), seed)
            found = compare(nudged, one.initial, reference, config.model, config.optimizer)
            for quantity in _NOISY:
                widened[quantity] = max(widened[quantity], NOISE_FACTOR * found[quantity].value)
        return widened

    def _record(self, config: RunConfig, nudged: int | None = None) -> list[Recording]:
        makers = partial(BatchMaker.of(config).micro_batches, config.parallel_layout.dp)
        size = config.parallel_layout.world_size
        return self._world(size).run(record, config, makers, self.steps, self.steps + STEPS_BEHIND, nudged)

    def _trace(self, config: RunConfig, precision: str) -> _Trace:
        alone = plain(config, precision)
        return _kept(self._traces, alone, lambda: self._run_alone(alone))

    def _run_alone(self, alone: RunConfig) -> _Trace:
        (recording,) = self._record(alone)
        return _Trace(whole_tensors(recording.initial), recording)

    def _reference(self, config: RunConfig) -> ReferenceRun:
        alone = plain(config)

        def run() -> ReferenceRun:
            start = whole_tensors(self._trace(alone, "fp32").recording.start)
            batches = [BatchMaker.of(alone).global_batch(step) for step in range(self.steps)]
            (reference,) = self._world(1).run(reference_run, alone, start, batches, self.steps + STEPS_BEHIND)
            return reference

        return _kept(self._references, alone, run)

    def _world(self, size: int) -> World:
        if self.world_of is not None:
            return self.world_of(size)
        if size not in self._worlds:
            self._worlds[size] = World(size, timeout_s=self.timeout_s, device=self.device)
        return self._worlds[size]


def _kept(store: dict[str, Kept], config: RunConfig, make: Callable[[], Kept]) -> Kept:
    key = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    if key not in store:
        store[key] = make()
    return store[key]
