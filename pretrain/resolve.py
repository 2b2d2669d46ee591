"""From a config with `auto` in it to the one that the ranks read, and what a resumed run may change of it.

Pure functions of plain facts: the machine is looked at by `launch.machine`, the vocabulary comes from the data's manifest.
A run keeps what it was resolved to: the same command on another machine would otherwise train at another precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pretrain.config import RunConfig, absolute
from pretrain.config_check import field_paths, suggest_field
from pretrain.errors import ConfigError
from pretrain.model.settings import ModelSettings
from pretrain.settings import is_under, leaves

FAST_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags of processors that multiply bf16 in hardware. Others emulate it, slower than fp32."""

FREE_TO_CHANGE = (
    *("layout", "logging", "evaluation", "samples", "checkpoint", "run.dir"),
    *("data.manifest", "data.cache", "data.prefetch", "data.verify"),
    *("train.recompute", "train.loss_tile_tokens", "train.feed_forward_tile_tokens", "train.determinism"),
)
"""What a resumed run may change unasked: nothing of it reaches the losses (docs: decisions, resume with a changed config)."""


@dataclass(frozen=True)
class Machine:
    """What ranks can run on, on each node."""

    cores: int
    cpu_flags: frozenset[str] = field(default_factory=frozenset)
    gpus: int = 0
    gpu_bf16: bool = True
    """Whether the GPUs multiply bf16 in hardware (compute capability 8 or more)."""


@dataclass(frozen=True)
class World:
    """How many ranks were asked for."""

    ranks_per_node: int | None = None
    """None: as many as the layout takes."""
    nodes: int = 1

    @property
    def ranks(self) -> int | None:
        """Ranks on all nodes; None where it is for the layout to say."""
        return None if self.ranks_per_node is None else self.ranks_per_node * self.nodes


def pipeline_layers(model: ModelSettings) -> int:
    """Layers that a stage can start with, those that have parameters: blocks, embeddings, learned positions, final norms and
    the head."""
    norms = 1 if model.norm_position == "pre" else 0
    inputs = 2 if model.positions == "learned" else 1
    decoder = inputs + model.num_layers + norms + 1
    return decoder if model.architecture == "decoder" else inputs + model.num_encoder_layers + norms + decoder


def resolve(
    config: RunConfig, machine: Machine, world: World, *, vocab_size: int | None = None, before: RunConfig | None = None
) -> RunConfig:
    """The config with every `auto` filled in and paths that hold from any folder.

    Args:
        config: as loaded.
        machine: of each node.
        world: the ranks that were asked for.
        vocab_size: of the tokenizer; stands in where the model names none.
        before: what the run was resolved to at its start, if it has one; its choices stay.

    Raises ConfigError where ranks and layout cannot be brought together.
    """
    device = config.train.device
    if device == "auto":
        device = before.train.device if before else ("cuda" if machine.gpus else "cpu")
    precision = config.train.precision
    if precision == "auto":
        fast = machine.gpu_bf16 if device == "cuda" else bool(machine.cpu_flags & FAST_BF16_FLAGS)
        precision = before.train.precision if before else ("bf16" if fast else "fp32")
    slots = (machine.gpus if device == "cuda" else machine.cores) * world.nodes
    layout = _stored_layout(config, world, before, slots if device == "cuda" else None)
    if layout is None:
        layout = {"pp": _pipe_size(config, world, slots)}
        layout["dp"] = _data_size(config, world, layout["pp"], slots if device == "cuda" else 1)
    model_vocab = config.model.vocab_size or vocab_size
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"dir": absolute(config.run_dir)}),
            "data": config.data.model_copy(update={"dir": absolute(config.data_dir)}),
            "model": config.model.model_copy(update={"vocab_size": model_vocab}),
            "layout": config.layout.model_copy(
                update=layout | {"sequence_parallel": _sequence_parallel(config, layout["pp"])}
            ),
            "train": config.train.model_copy(update={"device": device, "precision": precision}),
        }
    )


def _sequence_parallel(config: RunConfig, pp: int) -> str:
    """`auto` is enabled where tensor ranks would each send the whole stream to the next stage, and can share it."""
    if config.layout.sequence_parallel != "auto":
        return config.layout.sequence_parallel
    return "enabled" if config.layout.tp > 1 and pp > 1 and streams_divide(config) else "disabled"


def streams_divide(config: RunConfig) -> bool:
    """Whether the ranks of a tensor group can take equally many positions of what a context rank holds."""
    unit = config.layout.ring * config.layout.ulysses * config.layout.tp
    return all(length % unit == 0 for length in (config.data.sequence_length, config.data.source_length or 0))


def _stored_layout(
    config: RunConfig, world: World, before: RunConfig | None, gpus: int | None
) -> dict[str, int] | None:
    """The sizes that the run had, where they agree with the config and the ranks that are there; else None."""
    if before is None:
        return None
    stored = before.parallel_layout
    agrees = all(
        wanted in ("auto", size)
        for wanted, size in (
            (config.layout.pp, stored.pp),
            (config.layout.dp, stored.dp),
            (config.layout.tp, stored.tp),
            (config.layout.ring, stored.ring),
            (config.layout.ulysses, stored.ulysses),
        )
    )
    fits = world.ranks in (None, stored.world_size) and (gpus is None or stored.world_size <= gpus)
    return {"pp": stored.pp, "dp": stored.dp} if agrees and fits else None


def _pipe_size(config: RunConfig, world: World, slots: int) -> int:
    """Two stages where `auto` finds room for them, else one."""
    if config.layout.pp != "auto":
        return config.layout.pp
    copies = 1 if config.layout.dp == "auto" else config.layout.dp
    needed = 2 * config.layout.tp * config.layout.ring * config.layout.ulysses * copies
    ranks = world.ranks
    room = slots >= needed if ranks is None else ranks % needed == 0
    return 2 if room and config.layout.zero_stage == 1 and pipeline_layers(config.model) >= 2 else 1


def _data_size(config: RunConfig, world: World, pp: int, slots: int) -> int:
    """The data-parallel size: the ranks divided by the rest. Where no number was asked for, the largest that the batch
    divides into, so that a machine with an awkward number of GPUs still runs."""
    if config.layout.dp != "auto":
        return config.layout.dp
    rest = config.layout.tp * config.layout.ring * config.layout.ulysses * pp
    if world.ranks is not None:
        if world.ranks % rest:
            raise ConfigError(
                f"--nproc: {world.ranks} ranks cannot be divided by layout.tp={config.layout.tp} x layout.pp={pp} x layout.ring="
                f"{config.layout.ring} x layout.ulysses={config.layout.ulysses}; "
                f"use a multiple of {rest}"
            )
        return world.ranks // rest
    batches = config.global_batch_sequences // config.train.micro_batch_sequences
    return next((d for d in range(max(1, slots // rest), 1, -1) if batches % d == 0), 1)


def differences(before: RunConfig, after: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Every leaf whose value differs, by dotted path."""
    old, new = dict(leaves(before.model_dump(mode="json"))), dict(leaves(after.model_dump(mode="json")))
    return {path: (old.get(path), new.get(path)) for path in {**old, **new} if old.get(path) != new.get(path)}


def check_resume(before: RunConfig, after: RunConfig, allowed: Sequence[str] = ()) -> list[str]:
    """What a resumed run changes, as lines for the record. `allowed` are fields or sections that the user named.

    Raises ConfigError for a change that was neither free nor named, and for a name that is no field.
    """
    for name in allowed:
        if name not in field_paths(RunConfig):
            raise ConfigError(f"--allow-change {name}: not a field of the config{suggest_field(RunConfig, name)}")
    changed = differences(before, after)
    refused = [path for path in changed if not is_under(path, FREE_TO_CHANGE) and not is_under(path, allowed)]
    if refused:
        lines = [f"{path}: {_shown(changed[path][0])} before, {_shown(changed[path][1])} now" for path in refused]
        flags = " ".join(f"--allow-change {path}" for path in refused)
        raise ConfigError(
            "\n  ".join([f"{after.run.dir} was started with another config:", *lines])
            + f"\nset it back, start a new run (--set name=NEW-NAME), or continue with the change: {flags}"
        )
    return [f"{path}: {_shown(old)} -> {_shown(new)}" for path, (old, new) in changed.items() if path != "run.dir"]


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
