"""The row of attempts.jsonl with which a launch begins, and the number that it gets: its generation.

Claiming the number, looking at the checkpoints and writing the row come in that order; `pretrain.checkpoint.fence` says why.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pretrain.checkpoint.fence import ATTEMPTS, check_newest, newest_launch
from pretrain.checkpoint.format import CheckpointRef, committed_checkpoints
from pretrain.config import RESOLVED_NAME, RunConfig, write_resolved
from pretrain.data.token_shards import Manifest
from pretrain.files import append_json_line, hash_bytes, told_as_storage_error
from pretrain.guard.fault_file import logs_folder
from pretrain.metrics.facts import collect_facts, redact


@dataclass(frozen=True)
class Attempt:
    """What is noted of a launch; the same for each restart in place."""

    config: RunConfig
    """Resolved."""
    manifest: Manifest
    changes: Sequence[str]
    """What it changes of an earlier launch."""
    allowed: Sequence[str]
    """Fields that it may change."""
    nodes: int = 1
    hosts: Sequence[str] = ()
    """Names of the nodes, node 0's first; by default this one."""


def register(attempt: Attempt, before: int | None = None) -> int:
    """Notes a launch in the run's folder before any rank starts; returns its generation, 1 for the first launch.

    Args:
        attempt: what is noted.
        before: for a restart in place, the generation that the launcher had.

    Raises RankFault where another launcher's launch of the run has begun, StorageError where the folder cannot be written.
    """
    config, run_dir, layout = attempt.config, attempt.config.run_dir, attempt.config.parallel_layout
    facts = collect_facts(
        layout={**layout.sizes(), "zero_stage": config.layout.zero_stage},
        seed=config.run.seed,
        precision=config.train.precision,
        device=config.train.device,
        hosts=attempt.hosts,
        manifest_hash=attempt.manifest.hash,
        tokenizer_hash=attempt.manifest.tokenizer_hash,
    )
    generation = claim(run_dir, before)
    committed = committed_checkpoints(run_dir)
    check_newest(run_dir, generation)
    write_resolved(config, run_dir)
    row = {
        "generation": generation,
        "attempt": generation,
        "time": round(time.time(), 3),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "nodes": attempt.nodes,
        "ranks": layout.world_size,
        **facts,
        **_seen(committed),
        "changes": list(attempt.changes),
        "allowed": list(attempt.allowed),
        "config_hash": hash_bytes((run_dir / RESOLVED_NAME).read_bytes()),
    }
    append_json_line(run_dir / ATTEMPTS, redact(row))
    check_newest(run_dir, generation)  # of two that began together the later goes on
    return generation


def claim(run_dir: Path, before: int | None = None) -> int:
    """Takes the next generation for this launcher alone.

    Raises RankFault where `before` is given and no longer the newest, StorageError where the folder cannot be written.
    """
    if before is not None:
        check_newest(run_dir, before)
    generation = 1 + (newest_launch(run_dir) if before is None else before)
    with told_as_storage_error(logs_folder(run_dir, generation)):
        while True:
            folder = logs_folder(run_dir, generation)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                folder.mkdir()
            except FileExistsError:
                if before is not None:
                    check_newest(run_dir, before)
                generation += 1
            else:
                return generation


def _seen(committed: Sequence[CheckpointRef]) -> dict[str, object]:
    """What the launch goes on from, and for the fence the newest step of each earlier generation. The first is the newest."""
    newest = {"step": committed[0].step, "generation": committed[0].generation} if committed else None
    steps = {str(ref.generation): ref.step for ref in sorted(committed)}
    return {"checkpoint": newest, "committed": steps}
