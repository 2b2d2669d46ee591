"""Batches: the micro-batches of one data rank, step after step, ready before they are asked for.

    with training_batches(data, seed=1234, global_batch_sequences=64, micro_batch_sequences=8,
                          data_rank=0, data_size=2, first_step=0) as batches:
        for micro_batches in batches:      # a list of MicroBatch, one step
            engine.train_step(micro_batches)

The global batch of step k is the samples at positions k*G .. k*G + G - 1 of the order; data rank d takes the d-th of `data_size`
equal runs of them. Nothing is communicated, and the union over the ranks is the same for every data-parallel size.

Way of the tokens: memory map -> preallocated arrays -> one prefetch thread. There are no worker processes: they cost more
(pickling, copies, start-up) than the reading itself. The arrays are a ring: **a step's tensors stay valid until the next step
is asked for**; who keeps them longer must clone them.
"""

import queue
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pretrain.data.micro_batch import MicroBatch
from pretrain.data.objectives import Objective, Rows, build_objective
from pretrain.data.sample_order import SampleOrder, plan_hash
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.errors import ConfigError, DataError


class Batches:
    """Endless iterator over the steps of one data rank; a context manager that ends its thread."""

    def __init__(
        self,
        objective: Objective,
        order: SampleOrder,
        *,
        global_batch_sequences: int,
        micro_batch_sequences: int,
        data_rank: int,
        data_size: int,
        first_step: int,
        prefetch: int,
        plan_facts: Mapping[str, Any],
    ) -> None:
        _check_slices(global_batch_sequences, micro_batch_sequences, data_size)
        self._objective, self._order = objective, order
        self._global, self._micro = global_batch_sequences, micro_batch_sequences
        self._rank, self._rows = data_rank, global_batch_sequences // data_size
        self.plan_hash: str = plan_hash(plan_facts)
        """Fingerprint of the order of samples: what a resumed run must find unchanged."""
        self.notes: tuple[str, ...] = objective.notes
        """Sentences for the user: sequences that are cut."""
        self.step = first_step
        """The step whose micro-batches come next."""
        self.wait_s = 0.0
        """Seconds that the last `next` waited for the thread."""
        self.total_wait_s = 0.0
        # One slot more than are queued is being filled, and one more is in the consumer's hands.
        self._free: queue.SimpleQueue[Rows | None] = queue.SimpleQueue()
        for _ in range(prefetch + 2):
            self._free.put(Rows.empty(self._rows, objective.widths, objective.sequence_length))
        self._ready: queue.SimpleQueue[Rows | BaseException] = queue.SimpleQueue()
        self._held: Rows | None = None
        self._failure: BaseException | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(first_step,), name="prefetch", daemon=True)
        self._thread.start()

    @property
    def tokens_seen(self) -> int:
        """(Target) tokens of all ranks before the step that comes next, padding included."""
        return self.step * self._global * self._objective.sequence_length

    @property
    def epoch(self) -> int:
        """Epoch of the first sample of the step that comes next."""
        return self._order.epoch(self.step * self._global)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return self._order.size

    def samples(self, step: int) -> np.ndarray:
        """(G,) sample numbers of a step's global batch, in order."""
        return self._order.samples(step * self._global, self._global)

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
        rows = self._ready.get()
        self.wait_s = time.perf_counter() - started
        self.total_wait_s += self.wait_s
        if isinstance(rows, BaseException):
            self._failure = rows
            raise rows
        self._held = rows
        self.step += 1
        return [_micro_batch(rows.part(at, at + self._micro)) for at in range(0, self._rows, self._micro)]

    def close(self) -> None:
        """Ends the thread. Iterating afterwards is an error."""
        self._closing.set()
        self._free.put(None)
        self._thread.join()
        self._failure = self._failure or RuntimeError("these Batches are closed")

    def __enter__(self) -> "Batches":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self, step: int) -> None:
        try:
            while (rows := self._free.get()) is not None and not self._closing.is_set():
                first = step * self._global + self._rank * self._rows
                rows.fields["sample"][:] = np.arange(first, first + self._rows)
                self._objective.fill(self._order.samples(first, self._rows), rows)
                self._ready.put(rows)
                step += 1
        except BaseException as error:
            # Raised again in the consumer: a thread that dies silently would leave it waiting for ever.
            self._ready.put(error)


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
    """The training batches of one data rank from a step on.

    Raises:
        ConfigError: the global batch does not divide by data ranks and micro-batches.
        DataError: the data folder is missing, damaged, of the wrong kind, or smaller than one sequence.
    """
    _check_slices(global_batch_sequences, micro_batch_sequences, data_size)
    shards = TokenShards.open(data.folder, "train", data.verify)
    objective = build_objective(data, shards)
    order = training_order(data, objective, seed)
    return Batches(
        objective,
        order,
        global_batch_sequences=global_batch_sequences,
        micro_batch_sequences=micro_batch_sequences,
        data_rank=data_rank,
        data_size=data_size,
        first_step=first_step,
        prefetch=data.prefetch,
        plan_facts={
            "shards": shards.manifest.hash,
            "tokenizer": shards.manifest.tokenizer_hash,
            "seed": seed,
            "num_samples": order.size,
            **objective.facts,
        },
    )


def training_order(data: DataSettings, objective: Objective, seed: int) -> SampleOrder:
    """The order of a training split. Raises DataError where it has not one full sample."""
    if objective.num_samples < 1:
        raise DataError(
            f"{data.dir}: the training split is shorter than one sequence of {data.sequence_length} tokens; "
            "prepare a larger corpus, or lower data.sequence_length"
        )
    return SampleOrder(objective.num_samples, seed, "train")


def validation_batches(
    data: DataSettings, *, sequences: int | None, micro_batch_sequences: int, data_rank: int, data_size: int
) -> list[MicroBatch]:
    """The part of the validation set that one data rank evaluates; every rank gets the same number of micro-batches.

    Args:
        data: of the run.
        sequences: rows in all, evenly spread over the split, the same ones every time; None: every target once.
        micro_batch_sequences: rows of a micro-batch; the last ones are filled up with rows that hold no target.
        data_rank: place in the data axis.
        data_size: ranks of the data axis.

    Raises:
        DataError: the data folder is missing or damaged, or nothing is held out.
    """
    shards = TokenShards.open(data.folder, "validation", data.verify)
    objective = build_objective(data, shards)
    available = objective.num_validation_samples
    if available < 1:
        raise DataError(
            f"{data.dir}: the validation split is empty; raise data.prepare.validation_fraction and prepare again"
        )
    count = available if sequences is None else min(sequences, available)
    samples = np.arange(count, dtype=np.int64) * available // count
    steps = -(-count // (micro_batch_sequences * data_size))
    found = []
    for step in range(steps):
        first = (step * data_size + data_rank) * micro_batch_sequences
        rows = Rows.empty(micro_batch_sequences, objective.widths, objective.sequence_length)
        rows.clear(objective.padding)
        rows.fields["sample"].fill(-1)
        mine = samples[first : first + micro_batch_sequences]
        rows.fields["sample"][: len(mine)] = mine
        objective.fill(mine, rows)
        found.append(_micro_batch(rows))
    return found


def _check_slices(global_batch: int, micro_batch: int, data_size: int) -> None:
    if global_batch < 1 or global_batch % (micro_batch * data_size):
        raise ConfigError(
            f"train.global_batch_tokens makes {global_batch} sequences a step, which do not divide into micro-batches "
            f"of train.micro_batch_sequences={micro_batch} on dp={data_size} ranks; make it a multiple of "
            f"{micro_batch * data_size} sequences"
        )


def _micro_batch(rows: Rows) -> MicroBatch:
    return MicroBatch(
        {name: torch.from_numpy(array) for name, array in rows.fields.items()}, torch.from_numpy(rows.labels)
    )
