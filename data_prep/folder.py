"""The data folder seen from preparation: whose it is, whether it is finished, and what in it is left over.

prepare.json     the settings it is made with, written first
records/         results of finished tasks, by hash
corpus/          what was fetched: packages, hub data sets
manifest.json    what is there; says whether it is complete
cleaning.html    what was read and left out, for people
.lock            locked while a preparation is at work
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pretrain.data.prepare_settings import PrepareSettings
from pretrain.data.settings import DataSettings
from pretrain.data.token_shards import MANIFEST_NAME, SPLITS, TOKEN_BYTES_NAME, TOKENIZER_NAME, Manifest, read_manifest
from pretrain.data.tokenizer_settings import ENGINE_CHOICE
from pretrain.errors import DataError, StorageError
from pretrain.files import hash_file, path_within, sync_folder, told_as_storage_error, write_atomically
from pretrain.settings import leaves

SETTINGS_NAME, RECORDS_NAME, CORPUS_NAME, LOCK_NAME = "prepare.json", "records", "corpus", ".lock"
SIEVE = "cleaned_by"
"""In the manifest: identity of all that documents were held against."""
QUARANTINE_NAME, CLEANING_NAME = "quarantine.jsonl", "cleaning.html"
SHOWN_DIFFERENCES = 6
WITHOUT_EFFECT = {"bad_document_limit", "damaged_files", *(f"tokenizer.{name}" for name in ENGINE_CHOICE)}
"""Settings that change whether preparation stops, not what it makes."""


def finished_manifest(data: DataSettings) -> Manifest | None:
    """The manifest of a finished folder that fits the settings; None where something has to be made.

    Raises DataError where the folder was made with other settings, is not one of preparation, or cannot be made.
    """
    folder = data.folder
    _refuse_other_settings(data)
    if not (folder / MANIFEST_NAME).exists():
        if data.prepare is None:
            raise DataError(
                f"{folder}: not prepared, and the config has no data.prepare section that says how; "
                "extend one of the shipped data configs, or name a prepared folder in data.dir"
            )
        return None
    manifest = read_manifest(folder)
    if not manifest.complete:
        if data.prepare is None:
            raise DataError(
                f"{folder}: not prepared to the end, and the config has no data.prepare section that says how"
            )
        return None
    missing = [name for name in _wanted(manifest) if not (folder / name).is_file()]
    complete = not missing and hash_file(folder / TOKENIZER_NAME) == manifest.tokenizer_hash
    shards = (shard for split in SPLITS for shard in manifest.splits[split].shards)
    if complete and all((folder / shard.file).stat().st_size == shard.file_bytes for shard in shards):
        _refuse_other_files(data, manifest)
        return manifest
    if data.prepare is None:
        raise DataError(
            f"{folder}: {(missing or ['a file'])[0]} is missing or cut, and the config has no data.prepare to rebuild it"
        )
    return None


def _wanted(manifest: Manifest) -> list[str]:
    shards = [shard.file for split in SPLITS for shard in manifest.splits[split].shards]
    return [TOKENIZER_NAME, TOKEN_BYTES_NAME, *shards]


def _refuse_other_settings(data: DataSettings) -> None:
    folder, path = data.folder, data.folder / SETTINGS_NAME
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: data.dir must be a folder, not a file")
    if data.prepare is None or not folder.exists():
        return
    try:
        if path.exists():
            made_with = PrepareSettings.model_validate_json(path.read_text(encoding="utf-8"))
        elif (folder / MANIFEST_NAME).exists():
            made_with = PrepareSettings.model_validate_json(json.dumps(dict(read_manifest(folder).prepare)))
        else:
            _refuse_strangers(folder)
            return
    except (ValidationError, UnicodeDecodeError):
        raise DataError(
            f"{folder}: was not made by this version of `pretrain prepare`; name another folder in data.dir, delete this one "
            "to make it anew, or set data.prepare to null to read it as it is"
        ) from None
    changed = differences(made_with, data.prepare)
    if len(changed) > SHOWN_DIFFERENCES:
        changed = [*changed[:SHOWN_DIFFERENCES], f"and {len(changed) - SHOWN_DIFFERENCES} more"]
    if changed:
        raise DataError(
            f"{folder}: was made with other settings ({'; '.join(changed)}); name another folder in data.dir, "
            "or delete this one to make it anew"
        )


def _refuse_other_files(data: DataSettings, manifest: Manifest) -> None:
    """Raises DataError where the files that documents were held against say something else by now."""
    prepare = data.prepare
    named = prepare is not None and (
        prepare.decontamination or (prepare.cleaning.c4 and prepare.cleaning.c4.bad_words_path)
    )
    if prepare is None or not named:
        return
    from data_prep.sieve import Sieve

    if Sieve(prepare).identity != manifest.corpus.get(SIEVE):
        raise DataError(
            f"{data.folder}: was made with other contents of data.prepare.decontamination.paths or cleaning.c4.bad_words_path; "
            "put the files back, name another folder in data.dir, or delete this one to make it anew"
        )


def _refuse_strangers(folder: Path) -> None:
    """A folder that holds something else is nobody's to write into."""
    own = {LOCK_NAME, CORPUS_NAME, RECORDS_NAME, QUARANTINE_NAME, f".{QUARANTINE_NAME}.partial", CLEANING_NAME}
    unfinished = f".{SETTINGS_NAME}."  # of a run that was killed as it wrote them
    names = (entry.name for entry in folder.iterdir())
    strangers = sorted(name for name in names if name not in own and not name.startswith(unfinished))
    if strangers:
        raise DataError(
            f"{folder}: data.dir is not empty and was not made by `pretrain prepare` (it holds {strangers[0]!r}); "
            "name another folder"
        )


def differences(old: PrepareSettings, new: PrepareSettings) -> list[str]:
    """What differs between two settings, as `data.prepare.field: old there, new here`."""
    before, after = dict(leaves(old.model_dump(mode="json"))), dict(leaves(new.model_dump(mode="json")))
    return [
        f"data.prepare.{name}: {_told(before, name)} there, {_told(after, name)} here"
        for name in {**before, **after}
        if name not in WITHOUT_EFFECT and before.get(name) != after.get(name)
    ]


def _told(values: Mapping[str, Any], name: str) -> str:
    return repr(values[name]) if name in values else "nothing"


def claim(folder: Path, prepare: PrepareSettings) -> None:
    """Writes down what the folder is made with."""
    write_atomically(folder / SETTINGS_NAME, prepare.model_dump_json(indent=1) + "\n")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a second preparation out of the folder. Raises DataError where one is at work, StorageError."""
    with told_as_storage_error(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:  # as in /proc, which takes no new names
            raise StorageError(f"{folder}: no folder can be made there; name another place in data.dir") from None
        handle = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{folder}: another `pretrain prepare` is at work in this folder; wait for its end"
            ) from None
        yield
    finally:
        os.close(handle)


def write_quarantine(folder: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Lists the bad documents, in the order of the plan. There may be millions, so they are not held in memory.

    Raises StorageError.
    """
    path, partial = folder / QUARANTINE_NAME, folder / f".{QUARANTINE_NAME}.partial"
    with told_as_storage_error(path):
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(folder)


def remove_leftovers(folder: Path, manifest: Manifest) -> None:
    """Deletes shards that the manifest does not list: those of an interrupted run over an older state of the corpus."""
    listed = {path_within(folder, shard.file) for split in SPLITS for shard in manifest.splits[split].shards}
    for split in SPLITS:
        for path in (folder / split).rglob("*"):
            if path not in listed and not path.is_dir():
                path.unlink()
