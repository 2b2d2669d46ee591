"""Deleting old checkpoints. The marker goes first, so that one which is half deleted never counts."""

import shutil
from collections.abc import Collection
from pathlib import Path

from pretrain.checkpoint.fence import newest_launch
from pretrain.checkpoint.format import (
    CHECKPOINTS,
    CheckpointRef,
    committed_checkpoints,
    fenced_checkpoints,
    stored_checkpoints,
)
from pretrain.files import sync_folder


def prune(
    run_dir: Path, newest: CheckpointRef, keep: int, damaged: Collection[CheckpointRef] = ()
) -> list[CheckpointRef]:
    """Deletes what the committed checkpoint `newest` makes superfluous; only its writer may call this.

    Of the committed steps up to `newest` the last `keep` stay, each in its highest generation; those that this launch found to be
    `damaged` do not count as kept. What an earlier launch left uncommitted, or committed too late to count, goes. Committed
    checkpoints of later steps are left alone: the launch refused them when it started. So is all that a later launch wrote; and
    once one has begun nothing is deleted, for it chooses what it goes on from.

    Returns what was deleted. Raises OSError where a folder cannot be removed.
    """
    if newest_launch(run_dir) > newest.generation:
        return []
    assert newest.marker.is_file(), f"{newest} is not committed: nothing may be deleted in its favour"
    stored = [ref for ref in stored_checkpoints(run_dir) if ref.generation <= newest.generation]
    committed = [ref for ref in committed_checkpoints(run_dir) if ref in stored]
    fenced = fenced_checkpoints(run_dir)
    kept: dict[int, CheckpointRef] = {}
    for ref in committed:  # newest first: the first of a step is its highest generation
        if ref.step <= newest.step and ref not in damaged and len(kept) < keep:
            kept.setdefault(ref.step, ref)
    deleted = []
    for ref in stored:
        superseded = ref in committed and ref.step <= newest.step and ref not in kept.values()
        abandoned = (not ref.marker.exists() or ref in fenced) and ref.generation < newest.generation
        if superseded or abandoned:
            delete(ref)
            deleted.append(ref)
    _remove_partial_folders(run_dir, newest.generation)
    _remove_empty_step_folders(run_dir)
    return deleted


def delete(ref: CheckpointRef) -> None:
    """Removes one checkpoint. Raises OSError."""
    if ref.marker.exists():
        ref.marker.unlink()
        sync_folder(ref.path)
    shutil.rmtree(ref.path)


def _remove_partial_folders(run_dir: Path, generation: int) -> None:
    for partial in (run_dir / CHECKPOINTS).glob("step-*/.gen-*.partial"):
        number = partial.name.removeprefix(".gen-").removesuffix(".partial")
        if number.isdecimal() and int(number) < generation:
            shutil.rmtree(partial)


def _remove_empty_step_folders(run_dir: Path) -> None:
    for folder in (run_dir / CHECKPOINTS).glob("step-*"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
