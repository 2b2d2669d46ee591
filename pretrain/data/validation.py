"""The validation set: the same rows every time, source by source, in equal parts for all data ranks."""

from collections.abc import Callable
from threading import Event

import numpy as np

from pretrain.data.batches import micro_batch
from pretrain.data.follow import first_era_validation, open_manifest, silent, wait_for_first_era
from pretrain.data.manifest import Manifest
from pretrain.data.micro_batch import MicroBatch
from pretrain.data.objectives import Objective, Rows, build_objective
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import TokenShards
from pretrain.errors import DataError


def validation_batches(
    data: DataSettings, *, sequences: int | None, micro_batch_sequences: int, data_rank: int, data_size: int
) -> list[MicroBatch]:
    """The part of the validation set that one data rank evaluates; every rank gets the same number of micro-batches.

    See `validation_by_source`, which this joins.
    """
    found = validation_by_source(
        data,
        sequences=sequences,
        micro_batch_sequences=micro_batch_sequences,
        data_rank=data_rank,
        data_size=data_size,
    )
    return [batch for batches in found.values() for batch in batches]


def validation_by_source(
    data: DataSettings,
    *,
    sequences: int | None,
    micro_batch_sequences: int,
    data_rank: int,
    data_size: int,
    tell: Callable[[str], None] = silent,
) -> dict[str, list[MicroBatch]]:
    """The part of the validation set that one data rank evaluates, by the name of the source; no micro-batch holds two.

    Args:
        data: of the run.
        sequences: rows in all, evenly spread over the sources' windows, the same ones every time; None: every target once.
        micro_batch_sequences: rows of a micro-batch; the last ones are filled up with rows that hold no target.
        data_rank: place in the data axis.
        data_size: ranks of the data axis.
        tell: takes a line on a wait for the first era of a folder that grows.

    Raises:
        DataError: the data folder is missing or damaged, or nothing is held out.
    """
    manifest = validation_manifest(data, tell)
    streams = [TokenShards(data.folder, manifest, "validation", data.verify, name) for name in manifest.sources]
    if data.verify == "open":
        for stream in streams:
            stream.check_all()
    objective = build_objective(data, *streams)
    sizes = np.array(objective.source_validation_samples, dtype=np.int64)
    available = int(sizes.sum())
    if available < 1:
        raise DataError(
            f"{data.dir}: the validation split is empty; raise data.prepare.validation_fraction and prepare again"
        )
    count = available if sequences is None else min(sequences, available)
    samples = np.arange(count, dtype=np.int64) * available // count
    ends = np.cumsum(sizes)
    sources = ends.searchsorted(samples, side="right")
    samples -= (ends - sizes)[sources]
    return {
        name: _part(objective, samples[sources == number], number, micro_batch_sequences, data_rank, data_size)
        for number, name in enumerate(manifest.sources)
        if (sources == number).any()
    }


def validation_manifest(data: DataSettings, tell: Callable[[str], None] = silent) -> Manifest:
    """The manifest whose validation split a run reads: of a folder that it follows, what belongs to the first era."""
    manifest = open_manifest(data)
    if data.manifest == "finished":
        return manifest
    era_tokens = max(data.order.era_tokens // data.sequence_length, 1) * data.sequence_length + 1
    manifest = wait_for_first_era(data.folder, manifest, era_tokens, tell, Event())
    return first_era_validation(manifest, era_tokens)


def _part(
    objective: Objective, samples: np.ndarray, source: int, micro_rows: int, data_rank: int, data_size: int
) -> list[MicroBatch]:
    """One rank's micro-batches of some rows of a source."""
    found = []
    for step in range(-(-len(samples) // (micro_rows * data_size))):
        first = (step * data_size + data_rank) * micro_rows
        rows = Rows.empty(micro_rows, objective.widths, objective.sequence_length)
        mine = samples[first : first + micro_rows]
        objective.lay_out(rows)
        rows.part(len(mine), micro_rows).clear(objective.padding)
        rows.fields["sample"].fill(-1)
        rows.fields["sample"][: len(mine)] = mine
        objective.fill(mine, rows, np.full(len(mine), source))
        found.append(micro_batch(rows))
    return found
