"""What tests of reading share: items of a corpus, by range, and how to look at them."""

from pathlib import Path
from typing import Any

from data_prep.items import BadDocument, Document, Dropped, FileRange, Item
from data_prep.plan import plan_ranges
from data_prep.read import read_range
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.data.prepare_settings import PrepareSettings

Found = list[list[Item]]


def corpus_of(source: str, *paths: Path | str, **changes: Any) -> CorpusSettings:
    """Settings of a corpus of some paths."""
    return CorpusSettings.model_validate({"source": source, "paths": [str(path) for path in paths], **changes})


def read(corpus: CorpusSettings, folder: Path, task_bytes: int = 1000, **limits: Any) -> Found:
    """What each range of a corpus holds."""
    return read_ranges(plan_ranges(corpus, folder / "corpus", task_bytes), corpus, **limits)


def read_ranges(ranges: list[FileRange], corpus: CorpusSettings, **limits: Any) -> Found:
    """What each range holds."""
    prepare = PrepareSettings.model_validate({"corpus": corpus, **limits})
    return [list(read_range(files, corpus, prepare)) for files in ranges]


def flat(found: Found) -> list[Item]:
    """Items of all ranges."""
    return [item for part in found for item in part]


def texts(found: Found) -> list[str]:
    """Documents."""
    return [item.sides[0] for item in flat(found) if isinstance(item, Document)]


def pairs(found: Found) -> list[tuple[str, ...]]:
    """Pairs."""
    return [item.sides for item in flat(found) if isinstance(item, Document)]


def bad(found: Found) -> list[tuple[int | None, str]]:
    """Line and reason of what is bad."""
    return [(item.line, item.reason) for item in flat(found) if isinstance(item, BadDocument)]


def dropped(found: Found) -> list[str]:
    """Reasons of what is dropped."""
    return [item.reason for item in flat(found) if isinstance(item, Dropped)]
