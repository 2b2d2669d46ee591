"""`pretrain train`: from a config to ranks that run, and back to one error.

The order is: fill in `auto`; judge every rule; lock the run's folder; write config.yaml and a row of attempts.jsonl; start the
ranks. All that can be said without torch is said before torch is imported, and nothing is written before every rule holds.
"""

import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from launch.agreement import disagreement, facts_of
from launch.attempts import Attempts, follow, lead
from launch.crew import Crew, gathered
from launch.lock import only_launcher
from launch.machine import this_machine
from launch.nodes import Nodes
from launch.ranks import RankJob
from launch.registry import Attempt, register
from launch.shard_agent import localized, shard_agent
from launch.signals import EndingSignals, ending_signals
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
from pretrain.errors import ConfigError, DataError
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
    max_restarts: int = 0
    """Faults in a row, without a new checkpoint in between, after which ranks are started again in place."""


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
    speaks: bool = True
    """Whether this launcher is node 0's, which speaks for the run."""


def run(config: RunConfig, launch: Launch | None = None, signals: EndingSignals | None = None) -> Trained:
    """Trains a run to its end, from its last checkpoint where it has one.

    Args:
        config: of the run.
        launch: how it is started.
        signals: that end it; by default they are handled within this call alone.

    Raises ConfigError, DataError, CheckpointError, StorageError, RankFault, and Preempted or Interrupted where a signal ended it.
    """
    launch = launch or Launch()
    with ending_signals(launch.again) if signals is None else nullcontext(signals) as signals:
        if config.data.cache is not None or launch.nodes.count > 1:
            # A mistake in the config is told before anything is fetched, and before nodes wait for each other.
            check_before_data(config, launch, this_machine())
        with gathered(launch.nodes) as crew, localized(config) as (config, address):
            return _run(config, address, replace(launch, nodes=crew.nodes), crew, signals)


def _run(config: RunConfig, address: str, launch: Launch, crew: Crew, signals: EndingSignals) -> Trained:
    """`run` of a config whose data lie on this node's disk, or are brought there from the address."""
    checked = check(config, launch)
    # Node 0 speaks for the run; the others only start their ranks.
    with only_launcher(checked.config.run_dir) if crew.leads else nullcontext():
        agree(checked.config, crew)
        if crew.leads and (reached := _at_its_end(checked.config)):
            print(reached)
            return Trained(checked.config, by_this_launch=False)
        attempts = _attempts(checked, launch, crew)
        with shard_agent(checked.config, address):
            ran = follow(attempts, crew, signals) if not crew.leads else lead(attempts, crew, signals)
    return Trained(checked.config, by_this_launch=ran, speaks=crew.leads)


def _at_its_end(config: RunConfig) -> str | None:
    """What is told of a run that stands at its last step; None of any other."""
    reached = latest_checkpoint(config.run_dir)
    if reached is None or reached.step < config.train.steps:
        return None
    return f"{config.run_dir}: already at step {reached.step} of {config.train.steps}; nothing is left to train"


def agree(config: RunConfig, crew: Crew) -> None:
    """Learns the names of all nodes, and that they would train the same run. Raises ConfigError where they would not."""
    if crew.nodes.count == 1:
        return
    facts = facts_of(config)
    if not crew.leads:
        crew.publish(facts=facts)
        return
    others = crew.gather("facts", crew.nodes.join_timeout_s)
    crew.meet({node: crew.rows()[node]["host"] for node in others})
    if told := disagreement([(crew.nodes.hosts[0], facts), *((crew.nodes.hosts[n], others[n]) for n in others)]):
        raise ConfigError(told)


def _attempts(checked: CheckedRun, launch: Launch, crew: Crew) -> Attempts:
    nodes = crew.nodes
    noted = Attempt(checked.config, checked.manifest, checked.changes, checked.allowed, nodes.count, nodes.hosts)
    return Attempts(
        job=lambda generation: _job(checked.config, launch, generation, checked.machine),
        run_dir=checked.config.run_dir,
        register=lambda before: register(noted, before),
        max_restarts=launch.max_restarts,
        again=launch.again,
        tell=lambda line: print(line, file=sys.stderr, flush=True),
    )


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


def _job(config: RunConfig, launch: Launch, generation: int, machine: Machine) -> RankJob:
    local_ranks = config.parallel_layout.world_size // launch.nodes.count
    return RankJob(
        command=launch.rank_command,
        run_dir=config.run_dir,
        generation=generation,
        local_ranks=local_ranks,
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
