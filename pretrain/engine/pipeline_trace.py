"""What a pipeline stage does when, for one step: spans of passes and of waiting, and the bubble that follows from them.

The *bubble* of a step is the share of its pipeline time in which stages do no forward, backward or weight pass:
    1 - (sum over ranks of time in passes) / (sum over ranks of pipeline time)
The pipeline time of a rank runs from a moment at which all stages of its pipeline stand ready, to the moment at which the last of
them has done its last pass; reduction over the data axis and the optimizer come after. Both moments are made by a reduction over
the pipeline's ranks, so that no clocks of different machines are compared, and a stage that is done early waits in the second.

A traced step costs these two meetings and two clock readings an instruction; other steps run as if there were no trace.
On a GPU moments are CUDA events on the stream that computes, read once the step is over.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from deepspeed.runtime.pipe import schedule

from pretrain.engine.deferred_backward import WeightPass
from pretrain.parallel.agreement import world_sum
from pretrain.parallel.mesh import ProcessMesh

SpanKind = Literal["forward", "backward", "weight", "receive_activation", "receive_gradient", "send", "load", "meet"]
PASSES: tuple[SpanKind, ...] = ("forward", "backward", "weight")
_KINDS: Mapping[type, SpanKind] = {
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    WeightPass: "weight",
    schedule.RecvActivation: "receive_activation",
    schedule.RecvGrad: "receive_gradient",
    schedule.SendActivation: "send",
    schedule.SendGrad: "send",
    schedule.LoadMicroBatch: "load",
}


@dataclass(frozen=True)
class Span:
    """A piece of a stage's time, in seconds since the pipeline started. `backward` is that for inputs where weights wait."""

    kind: SpanKind
    micro_batch: int
    """The n-th span of its kind in the step."""
    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        """Its length."""
        return self.end_s - self.start_s


@dataclass(frozen=True)
class PipelineTrace:
    """Of one rank and one step."""

    spans: tuple[Span, ...]
    duration_s: float
    """From when all stages stood ready to when all were done."""

    @property
    def work_s(self) -> float:
        """Time in passes."""
        return sum(span.duration_s for span in self.spans if span.kind in PASSES)


def bubble_of(trace: PipelineTrace, mesh: ProcessMesh) -> float:
    """The bubble of a step, the same on every rank; every rank calls it."""
    work_s, duration_s = world_sum([trace.work_s, trace.duration_s], mesh)
    return 1.0 - work_s / duration_s


class Recorder:
    """While it is entered, DeepSpeed's pipeline engine tells what it does: its table of instructions is wrapped. For one step."""

    def __init__(self, mesh: ProcessMesh, engine: Any) -> None:
        self._mesh, self._engine, self._on_gpu = mesh, engine, mesh.device.type == "cuda"
        self._marks: list[tuple[SpanKind, Any, Any]] = []
        self._begin: Any = None
        self._end: Any = None

    def __enter__(self) -> "Recorder":
        table: dict[type, Callable[..., None]] = {
            command: self._timed(_KINDS[command], run) if command in _KINDS else run
            for command, run in type(self._engine)._INSTRUCTION_MAP.items()
        }
        # The first instruction behind the last pass, under every schedule.
        table[schedule.ReduceTiedGrads] = self._ending(table[schedule.ReduceTiedGrads])
        self._engine._INSTRUCTION_MAP = table
        return self

    def __exit__(self, *_: object) -> None:
        del self._engine._INSTRUCTION_MAP

    def trace(self) -> PipelineTrace:
        """What the step was."""
        if self._on_gpu:
            torch.cuda.synchronize(self._mesh.device)
        seen: Counter[str] = Counter()
        spans = []
        for kind, start, end in self._marks:
            spans.append(Span(kind, seen[kind], self._since_begin(start), self._since_begin(end)))
            seen[kind] += 1
        return PipelineTrace(tuple(spans), self._since_begin(self._end))

    def _timed(self, kind: SpanKind, run: Callable[..., None]) -> Callable[..., None]:
        def timed(engine: Any, **arguments: Any) -> None:
            if self._begin is None:
                self._meet()
                self._begin = self._now()
            start = self._now()
            run(engine, **arguments)
            self._marks.append((kind, start, self._now()))

        return timed

    def _ending(self, run: Callable[..., None]) -> Callable[..., None]:
        def ending(engine: Any, **arguments: Any) -> None:
            start = self._now()
            self._meet()
            self._end = self._now()
            self._marks.append(("meet", start, self._end))
            run(engine, **arguments)

        return ending

    def _meet(self) -> None:
        # A reduction and not a barrier: on a GPU it takes its place in the stream, where the events are.
        dist.all_reduce(torch.zeros(1, device=self._mesh.device), group=self._mesh.pipe.group)

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _since_begin(self, mark: Any) -> float:
        return self._begin.elapsed_time(mark) / 1000 if self._on_gpu else mark - self._begin
