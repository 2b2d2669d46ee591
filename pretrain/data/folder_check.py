"""What can be wrong with a data folder, found before ranks start and without torch."""

import os
from pathlib import Path

from pretrain.data.linked_shard import LINK_SUFFIX, check_target
from pretrain.data.manifest import SPLITS, TOKENIZER_NAME, Manifest, ShardRecord
from pretrain.data.token_shards import TokenShards, damaged_shard, missing_shard, shard_path
from pretrain.errors import DataError, StorageError
from pretrain.files import hash_bytes, told_as_storage_error

READ_WHOLE_BYTES = 256 << 20
"""Up to this size every block is held against its hash before a run starts (tenths of a second). Of larger folders names and
sizes are looked at; their blocks are checked when they are first read."""


def check_files(folder: Path, manifest: Manifest) -> None:
    """Finds a tokenizer that is not the shards' own, and shards that are missing, cut, unreadable or damaged.

    Raises DataError, StorageError.
    """
    check_tokenizer(folder, manifest)
    records = [record for split in SPLITS for record in manifest.splits[split].shards]
    for record in records:
        _check_size(shard_path(folder, record), record)
        if record.file.endswith(LINK_SUFFIX):
            check_target(shard_path(folder, record), manifest.roots)
    if sum(_bytes(record) for record in records) <= READ_WHOLE_BYTES:
        for split in SPLITS:
            TokenShards.open(folder, split, "read").check_all()


def check_tokenizer(folder: Path, manifest: Manifest) -> bytes:
    """The content of tokenizer.json. Raises DataError where it is not the one that the shards were made with."""
    path = folder / TOKENIZER_NAME
    try:
        with told_as_storage_error(path):
            content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `pretrain prepare` again to rebuild it") from None
    if hash_bytes(content) != manifest.tokenizer_hash:
        raise DataError(
            f"{path}: this is not the tokenizer that the token shards were made with (hash {hash_bytes(content)}, the "
            f"manifest says {manifest.tokenizer_hash}); put the original file back, or delete the folder and prepare again"
        )
    return content


def _bytes(record: ShardRecord) -> int:
    """What a check of all blocks reads; of a linked shard at most, for only its own file tells how wide its tokens are."""
    return record.file_bytes + (4 * record.tokens if record.file.endswith(LINK_SUFFIX) else 0)


def _check_size(path: Path, record: ShardRecord) -> None:
    if not path.exists():
        raise missing_shard(path)
    if path.stat().st_size != record.file_bytes:
        raise damaged_shard(path, f"it has {path.stat().st_size:,} bytes, the manifest says {record.file_bytes:,}")
    if not os.access(path, os.R_OK):
        raise StorageError(f"{path}: permission denied: make it readable by this user")
