"""`pretrain train`: from a config to ranks that run, and back to one error.

The order is: fill in `auto`; judge every rule; lock the run's folder; write config.yaml and a row of attempts.jsonl; start the
ranks. All that can be said without torch is said before torch is imported, and nothing is written before every rule holds.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from launch.endings import error_of
from launch.lock import only_launcher
from launch.machine import this_machine
from launch.ranks import Nodes, RankJob, run_ranks
from launch.registry import Attempt, register
from launch.shard_agent import localized, shard_agent
from pretrain.checkpoint.format import (
    DamagedFile,
    check_same_model,
    latest_checkpoint,
    read_marker,
    read_metadata,
)
from pretrain.config import RESOLVED_NAME, RunConfig, read_resolved
from pretrain.data.cache_settings import CacheSettings
from pretrain.data.folder_check import check_files, check_tokenizer
from pretrain.data.follow import wait_for_manifest
from pretrain.data.plan import build_plan, check_epochs, check_weights
from pretrain.data.token_shards import Manifest, read_token_bytes
from pretrain.errors import DataError
from pretrain.guard.fault_file import read_faults
from pretrain.resolve import Machine, World, check_resume, resolve
from pretrain.rules import check_config
from pretrain.site_rules import Disk, Prepared, Site, check_data, check_disk, check_site

TRAIN_COMMAND = (sys.executable, "-m", "pretrain.train")

_MALLOC_KEEP_BYTES = str(8 << 30)
_MALLOC_PAD_BYTES = str(256 << 20)


@dataclass(frozen=True)
class Launch:
    """How a run is started."""

    world: World = field(default_factory=World)
    nodes: Nodes = field(default_factory=Nodes)
    allow_change: tuple[str, ...] = ()
    """Fields that a resumed run may change beside those that are free."""
    rank_command: tuple[str, ...] = TRAIN_COMMAND
    again: str = "pretrain train CONFIG"
    """The command that continues the run, for messages."""


@dataclass(frozen=True)
class CheckedRun:
    """A run that every rule allows to start."""

    config: RunConfig
    """Resolved."""
    changes: list[str]
    """What it changes of an earlier launch."""
    allowed: tuple[str, ...]
    """Fields that it may change."""
    manifest: Manifest
    machine: Machine


@dataclass(frozen=True)
class Trained:
    """A run that stands at its last step."""

    config: RunConfig
    """Resolved."""
    by_this_launch: bool
    """False where it stood there before, and nothing was started."""


def run(config: RunConfig, launch: Launch | None = None) -> Trained:
    """Trains a run to its end, from its last checkpoint where it has one.

    Raises ConfigError, DataError, CheckpointError, StorageError, RankFault, and Preempted or Interrupted where a signal ended it.
    """
    launch = launch or Launch()
    if config.data.cache is not None:  # a mistake in the config is told before anything is fetched
        check_before_data(config, launch, this_machine())
    with localized(config) as (config, address):
        return _run(config, address, launch)


def _run(config: RunConfig, address: str, launch: Launch) -> Trained:
    """`run` of a config whose data lie on this node's disk, or are brought there from the address."""
    checked = check(config, launch)
    run_dir = checked.config.run_dir
    # Node 0 speaks for the run; the others only start their ranks.
    first = launch.nodes.rank == 0
    with only_launcher(run_dir) if first else nullcontext():
        reached = latest_checkpoint(run_dir)
        if reached is not None and reached.step >= checked.config.train.steps:
            print(
                f"{run_dir}: already at step {reached.step} of {checked.config.train.steps}; nothing is left to train"
            )
            return Trained(checked.config, by_this_launch=False)
        generation = register(_attempt(checked, launch.nodes)) if first else 0
        with shard_agent(checked.config, address):
            ended = run_ranks(_job(checked.config, launch, generation, checked.machine))
        error = error_of(ended, read_faults(run_dir, ended.generation), run_dir, launch.again)
    if error is not None:
        raise error
    return Trained(checked.config, by_this_launch=True)


def _check_checkpoint(config: RunConfig) -> None:
    """Raises CheckpointError where the run's newest checkpoint is of another model; a damaged one is left to the ranks."""
    newest = latest_checkpoint(config.run_dir)
    if newest is None:
        return
    with suppress(DamagedFile):
        check_same_model(read_metadata(newest, read_marker(newest)), config.model.model_dump(mode="json"))


def check(config: RunConfig, launch: Launch | None = None, machine: Machine | None = None) -> CheckedRun:
    """Fills in `auto` and judges every rule; writes nothing. Raises the error of the first stage that does not hold.

    `machine`: what the ranks will run on; None: this one.
    """
    launch = launch or Launch()
    machine = machine or this_machine()
    before, earlier = _before(config), _earlier(config)
    early = check_before_data(config, launch, machine)
    manifest = wait_for_manifest(early.data, print)
    vocab_size = early.model.vocab_size or manifest.vocab_size
    resolved = resolve(config, machine, launch.world, vocab_size=vocab_size, before=before)
    check_data(Prepared(resolved, manifest))
    _check_order(resolved, manifest)
    if resolved.data.cache is None:
        check_files(resolved.data.folder, manifest)
    else:
        check_tokenizer(resolved.data.folder, manifest)  # shards are checked as the agent brings them
    read_token_bytes(resolved.data.folder, manifest)
    _check_checkpoint(resolved)
    allowed = launch.allow_change if before else tuple(RunConfig.model_fields)
    changes = check_resume(earlier, resolved, allowed) if earlier else []
    check_disk(Disk(resolved, free_bytes(config.run_dir)))
    return CheckedRun(resolved, changes, launch.allow_change, manifest, machine)


def _check_order(config: RunConfig, manifest: Manifest) -> None:
    """Raises ConfigError for a blend that does not fit the sources, DataError for a source that is too small for it."""
    check_weights(config.data, manifest)
    if config.data.objective == "causal":  # how many rows pairs make is known when they are read
        plan = build_plan(config.data, manifest, config.run.seed, {})
        check_epochs(config.data, plan, config.train.steps * config.global_batch_sequences)
    if config.data.cache is not None:
        _check_cache(config, config.data.cache, manifest)


def _check_cache(config: RunConfig, cache: CacheSettings, manifest: Manifest) -> None:
    """Raises DataError for a cache in which a run would crawl."""
    sizes = manifest.splits["train"].column("file_bytes")
    held_out = int(manifest.splits["validation"].column("file_bytes").sum())
    if int(sizes.max(initial=0)) + held_out > cache.gib * 2**30:
        raise DataError(
            f"data.cache.gib={cache.gib:g} does not hold the {_gib(held_out)} of validation shards, which stay, and one training "
            f"shard, of which the largest has {_gib(sizes.max())}; enlarge the cache"
        )
    if config.data.order.method == "shuffle" and int(sizes.sum()) + held_out > cache.gib * 2**30:
        raise DataError(
            f"data.cache.gib={cache.gib:g} is smaller than the {_gib(int(sizes.sum()) + held_out)} of shards, and with "
            "data.order.method=shuffle every step reads from all of them; set data.order.method=eras, or enlarge the cache"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def check_before_data(config: RunConfig, launch: Launch, machine: Machine) -> RunConfig:
    """What can be judged while the data folder is not there yet; returns the config with `auto` filled in."""
    before = _before(config)
    vocab_size = before.model.vocab_size if before else None
    resolved = resolve(config, machine, launch.world, vocab_size=vocab_size, before=before)
    check_config(resolved)
    check_site(Site(resolved, machine, launch.world))
    return resolved


def _before(config: RunConfig) -> RunConfig | None:
    """What the run was resolved to by an earlier launch, whose training this one continues.

    A launch that left no checkpoint binds nobody: it may have been started on the wrong data, or failed in its ranks.
    """
    return _earlier(config) if latest_checkpoint(config.run_dir) is not None else None


def _earlier(config: RunConfig) -> RunConfig | None:
    """What an earlier launch left in the run's folder, whatever became of it."""
    return read_resolved(config.run_dir) if (config.run_dir / RESOLVED_NAME).exists() else None


def free_bytes(run_dir: Path) -> int:
    """Room for checkpoints: what is free where the folder is or would be, and what the run's older checkpoints hold."""
    place = next(p for p in (run_dir.absolute(), *run_dir.absolute().parents) if p.exists())
    held = sum(file.stat().st_size for file in (run_dir / "checkpoints").rglob("*.safetensors"))
    return shutil.disk_usage(place).free + held


def _attempt(checked: CheckedRun, nodes: Nodes) -> Attempt:
    return Attempt(checked.config, checked.manifest, checked.changes, checked.allowed, nodes.count)


def _job(config: RunConfig, launch: Launch, generation: int, machine: Machine) -> RankJob:
    local_ranks = config.parallel_layout.world_size // launch.nodes.count
    return RankJob(
        command=launch.rank_command,
        run_dir=config.run_dir,
        generation=generation,
        local_ranks=local_ranks,
        nodes=launch.nodes,
        environment=rank_environment(config, local_ranks, machine, launch.nodes.count, os.environ),
    )


def rank_environment(
    config: RunConfig, local_ranks: int, machine: Machine, nodes: int, given: Mapping[str, str]
) -> dict[str, str]:
    """Variables that libraries in a rank read when they are loaded. What the user has set stays.

    On CPU, malloc keeps freed memory: gradients are flattened into a fresh buffer of their whole size each step, and page
    faults on it cost more than the optimizer does (30M parameters: 110 ms a step with them, 57 without).
    """
    variables = {
        "OMP_NUM_THREADS": str(max(1, machine.cores // local_ranks)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONFAULTHANDLER": "1",
        "DS_ACCELERATOR": config.train.device,
    }
    if config.train.device == "cpu":
        variables |= {
            "MALLOC_MMAP_THRESHOLD_": _MALLOC_KEEP_BYTES,
            "MALLOC_TRIM_THRESHOLD_": _MALLOC_KEEP_BYTES,
            "MALLOC_TOP_PAD_": _MALLOC_PAD_BYTES,
        }
        if nodes == 1 and sys.platform.startswith("linux"):
            # gloo otherwise resolves the host's name, which fails or waits on a machine without a name service.
            variables["GLOO_SOCKET_IFNAME"] = "lo"
    elif config.train.determinism == "bitwise":
        # cuBLAS reads it when CUDA starts: workspaces of its own for every stream, so that no sum depends on their order.
        variables["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    fresh = {name: value for name, value in variables.items() if name not in given}
    # A GPU that is there must not draw the libraries of a run on CPU to it, whatever was set.
    return fresh | ({"CUDA_VISIBLE_DEVICES": ""} if config.train.device == "cpu" else {})
