"""Data sets of a hub, through Hugging Face's `datasets`: the one file that imports it, and only when one is asked for.

The rows become parquet files under the data folder, once; from there on they are a parquet corpus like any other. So a run is
repeated from its own folder, without the network, and every task reads its own row groups. Costs a copy of the columns that are
read. No code of a data set is ever run (`trust_remote_code` is never given, and the versions that are required refuse scripts).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from data_prep.addresses import redacted
from data_prep.row_files import row_files, write_row_files
from pretrain.data.corpus_settings import CorpusSettings
from pretrain.errors import DataError, PretrainError
from pretrain.files import hash_bytes, write_atomically

ROWS = 256
"""Rows that `datasets` hands over at once."""
COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"[\w][\w.-]*(/[\w.-]+)?")
_SAVED = ("state.json", "dataset_dict.json")
"""What `save_to_disk` leaves in a folder."""


def hub_files(corpus: CorpusSettings, folder: Path, setting: str = "data.prepare.corpus") -> list[Path]:
    """A split of a data set as parquet files under `folder`, made once.

    Args:
        corpus: `name`, `subset`, `split`, `revision`, `streaming`, and the fields that are read.
        folder: where they lie; a subfolder for each data set, split and choice of fields.
        setting: the config's name for the corpus, for messages.

    Raises:
        DataError: no pinned commit, a data set that cannot be fetched, would need code of its own, or lacks a column; a local
            folder that changed since.
        StorageError: the folder cannot be written.
    """
    local = _local_folder(corpus)
    identity = [str(local.resolve()) if local else corpus.name, corpus.subset, corpus.split, list(_columns(corpus))]
    if local is None:
        _refuse_unpinned(corpus, setting)
        identity.append(corpus.revision)
    stem = re.sub(r"[^\w.-]+", "-", local.name if local else corpus.name or "")
    place = folder / f"{stem}-{hash_bytes(json.dumps(identity).encode())[:16]}"
    state, note = _state(local), place.with_name(f"{place.name}.json")
    if place.exists() and row_files(place):
        _refuse_changed(state, note, place, corpus)
        return row_files(place)
    write_atomically(note, json.dumps({"data_set": identity, "state": state}, indent=1) + "\n")
    return write_row_files(_tables(corpus, local), place)


def _columns(corpus: CorpusSettings) -> tuple[str, ...]:
    return tuple(dict.fromkeys(corpus.fields))


def _local_folder(corpus: CorpusSettings) -> Path | None:
    path = Path(corpus.name or "").expanduser()
    return path if corpus.name and path.is_dir() else None


def _refuse_unpinned(corpus: CorpusSettings, setting: str) -> None:
    if not corpus.name or not corpus.revision:
        raise DataError(
            f"{setting}: source hub needs `name` and `revision` (a commit: without it a run cannot be repeated), or a local "
            "folder as `name`"
        )
    if not _NAME.fullmatch(corpus.name):
        raise DataError(
            f"{setting}.name: {corpus.name!r} is neither a folder here nor a name on the hub such as owner/name"
        )
    if not COMMIT.fullmatch(corpus.revision):
        raise DataError(
            f"{setting}.revision: {corpus.revision!r} is not a full commit (40 hexadecimal digits); a branch or a short hash may "
            "mean other data tomorrow; take the commit from the data set's page"
        )


def _state(local: Path | None) -> list[list[Any]]:
    """Names, sizes and times of a local folder's files."""
    if local is None:
        return []
    files = sorted(path for path in local.rglob("*") if path.is_file())
    return [[str(path.relative_to(local)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _refuse_changed(state: list[list[Any]], note: Path, place: Path, corpus: CorpusSettings) -> None:
    """A folder that is gone or empty leaves the copy as it is; one that holds something else is not what the copy was made of."""
    try:
        before = json.loads(note.read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError):
        return
    if state and state != before:
        raise DataError(f"{corpus.name}: changed since it was copied to {place}; delete that folder to read it anew")


def _tables(corpus: CorpusSettings, local: Path | None) -> Iterator[pyarrow.Table]:
    """The rows. Raises DataError."""
    try:
        data = _load(corpus, local)
        present = data.column_names
        columns = [name if present is None or name in present else name.split(".")[0] for name in _columns(corpus)]
        if present is not None and (missing := [name for name in columns if name not in present]):
            raise DataError(f"{corpus.name}: no column {missing[0]!r}; it has {', '.join(sorted(present))}")
        rows = data.select_columns(list(dict.fromkeys(columns))).with_format("arrow")
        for table in rows.iter(batch_size=ROWS):
            yield table.replace_schema_metadata(None)
    except PretrainError:
        raise
    except Exception as error:  # the library raises many kinds, from ValueError to those of its network layer
        cause = redacted(str(error)).strip() or type(error).__name__
        raise DataError(f"{corpus.name}: the data set cannot be loaded: {cause}") from None


def _load(corpus: CorpusSettings, local: Path | None) -> Any:
    try:
        import datasets.config
    except ImportError:
        raise DataError("source hub needs the `datasets` library: pip install datasets") from None
    # Else every streamed data set loads torch (5 s, 400 MB) to ask whether it is in one of its loaders.
    datasets.config.TORCH_AVAILABLE = False
    if local is not None and any((local / name).exists() for name in _SAVED):
        loaded = datasets.load_from_disk(str(local))
        if isinstance(loaded, dict):
            if corpus.split not in loaded:
                raise DataError(
                    f"{corpus.name}: no split {corpus.split!r}; it has {', '.join(sorted(map(str, loaded)))}"
                )
            loaded = loaded[corpus.split]
        return loaded
    return datasets.load_dataset(
        str(local) if local else corpus.name or "",
        corpus.subset,
        split=corpus.split,
        revision=None if local else corpus.revision,
        streaming=corpus.streaming == "enabled",
    )
