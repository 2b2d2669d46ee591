"""The plan over several sources: their ranges, interleaved in proportion to their sizes.

Whoever follows a folder that grows wants every source from the start: after any part of the plan, about the same part of each
source is done. The order depends on the sizes alone. It is also the order in which the first of equal documents stays.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from data_prep.items import FileRange
from data_prep.plan import plan_ranges
from pretrain.data.prepare_settings import PrepareSettings


def plan_sources(prepare: PrepareSettings, folder: Path) -> list[FileRange]:
    """The ranges of all sources, in the order of the plan; what must be fetched goes into `folder`.

    Raises DataError, StorageError.
    """
    return interleaved(
        {name: plan_ranges(corpus, folder, prepare.task_bytes, name) for name, corpus in prepare.sources.items()}
    )


def interleaved(sources: Mapping[str, Sequence[FileRange]]) -> list[FileRange]:
    """All ranges by how much of their source lies before their middle; equal ones in the order of the sources."""
    placed: list[tuple[int, int, FileRange]] = []
    for number, ranges in enumerate(sources.values()):
        total, before = max(sum(files.size for files in ranges), 1), 0
        for files in ranges:
            placed.append((((2 * before + files.size) << 64) // total, number, files))
            before += files.size
    return [files for _, _, files in sorted(placed, key=lambda place: place[:2])]
