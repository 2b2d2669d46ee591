"""Batches: the micro-batches of one data rank, step after step, ready before they are asked for.

    with training_batches(data, seed=1234, global_batch_sequences=64, micro_batch_sequences=8,
                          data_rank=0, data_size=2, first_step=0) as batches:
        for micro_batches in batches:      # a list of MicroBatch, one step
            engine.train_step(micro_batches)

The global batch of step k is G samples of the plan from `segment.sample(k)` on; data rank d takes the d-th of `data_size` equal
runs of them. Nothing is communicated, and the union over the ranks is the same for every data-parallel size.

Way of the tokens: memory map -> preallocated arrays, pinned where the device is a GPU -> one prefetch thread. There are no worker
processes: they cost more (pickling, copies, start-up) than the reading itself. The arrays are a ring: **a step's tensors stay
valid until the next step is asked for**; who keeps them longer must clone them. The order is computed for several steps at once,
since a call costs as much as some hundred samples.
"""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Literal

import numpy as np
import torch

from pretrain.data.feed import Feed
from pretrain.data.follow import Waiting
from pretrain.data.local_shards import Position
from pretrain.data.micro_batch import MicroBatch, RowSources
from pretrain.data.objectives import Allocator, Rows
from pretrain.data.plan_segments import first_segment
from pretrain.data.settings import DataSettings
from pretrain.errors import ConfigError

ORDERED_AT_ONCE, MOST_STEPS_AHEAD = 4096, 128
"""Samples of a rank whose order is computed in one go, and of how many steps they may be: walking the permutation back into its
range takes some ten rounds of numpy calls, however many samples there are."""
Memory = Literal["pageable", "pinned"]


@dataclass(frozen=True)
class _Slot:
    """A place of the ring: the rows of a step, and the same memory as micro-batches."""

    rows: Rows
    micro_batches: tuple[MicroBatch, ...]

    @classmethod
    def of(cls, rows: Rows, micro_rows: int, num_sources: int) -> "_Slot":
        parts = range(0, len(rows.labels), micro_rows)
        return cls(rows, tuple(micro_batch(rows.part(at, at + micro_rows), num_sources) for at in parts))


class Batches:
    """Endless iterator over the steps of one data rank; a context manager that ends its thread."""

    def __init__(
        self,
        feed: Feed,
        *,
        global_batch_sequences: int,
        micro_batch_sequences: int,
        data_rank: int,
        data_size: int,
        first_step: int,
        prefetch: int,
        memory: Memory = "pageable",
    ) -> None:
        """Starts to read; the feed must stand in the segment of the first step.

        Raises ConfigError where the global batch does not divide by data ranks and micro-batches.
        """
        check_slices(global_batch_sequences, micro_batch_sequences, data_size)
        self._feed = feed
        objective = feed.objective
        self._global, self._micro = global_batch_sequences, micro_batch_sequences
        self._rank, self._rows = data_rank, global_batch_sequences // data_size
        self._sequence_length = objective.sequence_length
        self.notes: tuple[str, ...] = objective.notes
        """Sentences for the user: sequences that are cut."""
        self.step = first_step
        """The step whose micro-batches come next."""
        self.wait_s = 0.0
        """Seconds that the last `next` waited for the thread."""
        self.total_wait_s = 0.0
        # One slot more than are queued is being filled, and one more is in the consumer's hands.
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        for _ in range(prefetch + 2):
            self._free.put(self._slot(_allocator(memory)))
        self._ready: queue.SimpleQueue[_Slot | BaseException] = queue.SimpleQueue()
        self._held: _Slot | None = None
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._position = Position(feed.folder)
        self._thread = threading.Thread(target=self._work, args=(first_step,), name="prefetch", daemon=True)
        self._thread.start()

    def _slot(self, allocate: Allocator) -> _Slot:
        objective, num_sources = self._feed.objective, len(self._feed.plan.sources)
        rows = Rows.empty(self._rows, objective.widths, objective.sequence_length, allocate)
        objective.lay_out(rows)
        if num_sources > 1:
            rows = replace(rows, sources=np.zeros(self._rows, dtype=np.int64))
        return _Slot.of(rows, self._micro, num_sources)

    @property
    def plan_hash(self) -> str:
        """Fingerprint of the order of samples up to the step that comes next: what a resumed run must find unchanged."""
        return self._feed.hash_at(self.next_sample)

    @property
    def next_sample(self) -> int:
        """Samples of all ranks before the step that comes next."""
        return self._feed.segment.sample(self.step)

    @property
    def tokens_seen(self) -> int:
        """(Target) tokens of all ranks before the step that comes next, padding included; at the length that is read now."""
        return self.next_sample * self._sequence_length

    @property
    def source_samples(self) -> dict[str, int]:
        """Samples that each source has given before the step that comes next."""
        return dict(self._feed.counts(self.next_sample))

    @property
    def source_epochs(self) -> dict[str, float]:
        """Passes over each source before the step that comes next; of sources whose size is known."""
        return self._feed.plan.epochs(self._feed.segment.place(self.next_sample))

    @property
    def epoch(self) -> int:
        """Whole passes over all sources before the step that comes next, as many samples as they have counted as one."""
        return int(self.passes)

    @property
    def passes(self) -> float:
        """Samples before the step that comes next, over those that all sources have; 0 while that is not known."""
        plan = self._feed.plan
        known = all(source.complete for source in plan.sources)
        return self._feed.segment.place(self.next_sample) / self.num_samples if known else 0.0

    @property
    def num_samples(self) -> int:
        """Samples of an epoch of all sources, as far as they are known."""
        return sum(source.samples for source in self._feed.plan.sources)

    def samples(self, step: int) -> np.ndarray:
        """(G,) windows of a step's global batch, in order, each within its source."""
        return self._feed.places([self._feed.segment.sample(step)], self._global)[0][1]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        return self

    def __next__(self) -> list[MicroBatch]:
        """This rank's micro-batches of the next step. Raises what the thread met: DataError, StorageError."""
        if self._failure is not None:
            raise self._failure
        if self._held is not None:
            self._free.put(self._held)
            self._held = None
        started = time.perf_counter()
        slot = self._ready.get()
        self.wait_s = time.perf_counter() - started
        self.total_wait_s += self.wait_s
        if isinstance(slot, BaseException):
            self._failure = slot
            raise slot
        self._held = slot
        self.step += 1
        return list(slot.micro_batches)

    def put_back(self) -> None:
        """The step that was given last is not trained on: it counts as the one that comes next. It is not given again."""
        self.step -= 1

    def close(self) -> None:
        """Ends the thread. Iterating afterwards is an error."""
        self._closing.set()
        self._free.put(None)
        self._thread.join()
        self._position.close()
        self._failure = self._failure or RuntimeError("these Batches are closed")

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, step: int) -> None:
        try:
            for number, (first, place) in enumerate(self._places(step), step):
                self._position.tell(number)
                slot = self._free.get()
                if slot is None or self._closing.is_set():
                    return
                slot.rows.fields["sample"][:] = np.arange(first, first + self._rows)
                self._feed.fill(place, slot.rows)
                self._ready.put(slot)
        except Waiting:
            return
        except BaseException as error:
            # Raised again in the consumer: a thread that dies silently would leave it waiting for ever.
            self._ready.put(error)

    def _places(self, step: int) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """The first sample of this rank's part of each step, and what stands there."""
        ahead = min(max(1, ORDERED_AT_ONCE // self._rows), MOST_STEPS_AHEAD)
        while True:
            mine = self._rank * self._rows
            firsts = [self._feed.segment.sample(step + at) + mine for at in range(ahead)]
            places = self._feed.places(firsts, self._rows, self._closing)
            yield from zip(firsts, places, strict=False)  # fewer places where the folder still grows
            step += len(places)


def _allocator(memory: Memory) -> Allocator:
    if memory == "pageable":
        return lambda shape: np.empty(shape, dtype=np.int64)
    # The array keeps the tensor alive.
    return lambda shape: torch.empty(shape, dtype=torch.int64, pin_memory=True).numpy()


def training_batches(
    data: DataSettings,
    *,
    seed: int,
    global_batch_sequences: int,
    micro_batch_sequences: int,
    data_rank: int,
    data_size: int,
    first_step: int,
) -> Batches:
    """The training batches of one data rank of a run of one segment, from a step on.

    Raises:
        ConfigError: the global batch does not divide by data ranks and micro-batches; weights and sources do not fit.
        DataError: the data folder is missing, damaged, of the wrong kind, or smaller than one sequence.
    """
    check_slices(global_batch_sequences, micro_batch_sequences, data_size)
    feed = Feed(data, seed)
    return Batches(
        feed.enter(first_segment(feed.plan, global_batch_sequences)),
        global_batch_sequences=global_batch_sequences,
        micro_batch_sequences=micro_batch_sequences,
        data_rank=data_rank,
        data_size=data_size,
        first_step=first_step,
        prefetch=data.prefetch,
    )


def check_slices(global_batch: int, micro_batch: int, data_size: int) -> None:
    """Raises ConfigError where a global batch does not divide by data ranks and micro-batches."""
    if global_batch < 1 or global_batch % (micro_batch * data_size):
        raise ConfigError(
            f"train.global_batch_tokens makes {global_batch} sequences a step, which do not divide into micro-batches "
            f"of train.micro_batch_sequences={micro_batch} on dp={data_size} ranks; make it a multiple of "
            f"{micro_batch * data_size} sequences"
        )


def micro_batch(rows: Rows, num_sources: int = 1) -> MicroBatch:
    """Rows as tensors that share their memory; their sources are numbers below `num_sources`."""
    return MicroBatch(
        {name: torch.from_numpy(array) for name, array in rows.fields.items()},
        torch.from_numpy(rows.labels),
        None if rows.sources is None else RowSources(torch.from_numpy(rows.sources), num_sources),
    )
