"""Rules that need more than the config: the machine, the run's folder, the prepared data. Tables as in `pretrain.rules`."""

from dataclasses import dataclass, field

from pretrain.config import RunConfig
from pretrain.data.left_out import left_out
from pretrain.data.token_shards import Manifest
from pretrain.errors import ConfigError, DataError, StorageError
from pretrain.model.flops import num_parameters
from pretrain.resolve import Machine, World
from pretrain.rules import Rule, broken_rules, raise_all

STATE_BYTES_PER_PARAMETER = 12
"""Of a checkpoint: the fp32 master weight and Adam's two moments."""


@dataclass(frozen=True)
class Site:
    """A resolved config and what its ranks are to run on."""

    config: RunConfig
    machine: Machine
    world: World = field(default_factory=World)

    @property
    def ranks(self) -> int:
        """Ranks of the layout."""
        return self.config.parallel_layout.world_size

    @property
    def layout(self) -> str:
        """The layout in the user's words."""
        return self.config.parallel_layout.describe()


@dataclass(frozen=True)
class Disk:
    """A resolved config and the room for its run's folder."""

    config: RunConfig
    free_bytes: int
    """What older checkpoints of the run hold included: they are deleted as new ones are committed."""

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint."""
        return STATE_BYTES_PER_PARAMETER * num_parameters(self.config.model)


@dataclass(frozen=True)
class Prepared:
    """A resolved config and the data folder that it names."""

    config: RunConfig
    manifest: Manifest


def check_site(site: Site) -> None:
    """Judges ranks and devices. Raises ConfigError."""
    raise_all(ConfigError, broken_rules(SITE_RULES, site))


def check_disk(disk: Disk) -> None:
    """Judges the room for checkpoints. Raises StorageError."""
    raise_all(StorageError, broken_rules(DISK_RULES, disk))


def check_data(prepared: Prepared) -> None:
    """Judges the data folder against the config. Raises DataError."""
    raise_all(DataError, broken_rules(DATA_RULES, prepared))


SITE_RULES: tuple[Rule[Site], ...] = (
    Rule(
        "layout_fills_world",
        lambda s: s.world.ranks not in (None, s.ranks),
        lambda s: (
            f"--nproc: {s.world.ranks} ranks, but the layout {s.layout} has {s.ranks}; start {s.ranks}, or set "
            "layout.dp=auto, which fills the ranks that are there"
        ),
    ),
    Rule(
        "nodes_share_ranks",
        lambda s: s.ranks % s.world.nodes != 0,
        lambda s: (
            f"--nnodes {s.world.nodes} must divide the {s.ranks} ranks of the layout {s.layout}; change layout.dp or the "
            "number of nodes"
        ),
    ),
    Rule(
        "cuda_is_there",
        lambda s: s.config.train.device == "cuda" and s.machine.gpus == 0,
        lambda s: (
            "train.device=cuda, but no usable GPU was found (a driver, a GPU that CUDA_VISIBLE_DEVICES does not hide, and a "
            "torch built for CUDA are needed; `pretrain doctor` says which is missing); set train.device=cpu"
        ),
    ),
    Rule(
        "gpus_suffice",
        lambda s: s.config.train.device == "cuda" and 0 < s.machine.gpus * s.world.nodes < s.ranks,
        lambda s: (
            f"the layout {s.layout} has {s.ranks} ranks and each needs a GPU of its own, but {s.world.nodes} node(s) with "
            f"{s.machine.gpus} GPU(s) are there; make layout.pp, layout.tp or layout.dp smaller, or set train.device=cpu"
        ),
    ),
)
"""Rules of ranks and devices."""

DISK_RULES: tuple[Rule[Disk], ...] = (
    Rule(
        "disk_holds_checkpoints",
        lambda d: d.free_bytes < d.checkpoint_bytes * (d.config.checkpoint.keep + 1),
        lambda d: (
            f"run.dir={d.config.run.dir} has {d.free_bytes / 1e9:.2f} GB free, but checkpoint.keep={d.config.checkpoint.keep} "
            f"and one being written take {d.checkpoint_bytes / 1e9:.2f} GB each; free some space, keep fewer, or set run.dir "
            "on a larger disk"
        ),
    ),
)
"""Rules of the run's folder."""

DATA_RULES: tuple[Rule[Prepared], ...] = (
    Rule(
        "vocabulary_covers_tokenizer",
        lambda p: (p.config.model.vocab_size or 0) < p.manifest.vocab_size,
        lambda p: (
            f"model.vocab_size={p.config.model.vocab_size} is smaller than the vocabulary of the tokenizer in data.dir="
            f"{p.config.data.dir}, {p.manifest.vocab_size}; set model.vocab_size=null to take the tokenizer's"
        ),
    ),
    Rule(
        "data_kind_fits_objective",
        lambda p: (p.manifest.kind == "pairs") != (p.config.data.objective == "seq2seq"),
        lambda p: (
            f"data.dir={p.config.data.dir} holds {p.manifest.kind}, but data.objective={p.config.data.objective} needs "
            f"{'pairs' if p.config.data.objective == 'seq2seq' else 'text'}; name another folder, or change data.objective"
        ),
    ),
    Rule(
        "training_data_suffice",
        lambda p: p.manifest.complete and p.manifest.splits["train"].tokens <= p.config.data.sequence_length,
        lambda p: (
            f"data.dir={p.config.data.dir} holds {p.manifest.splits['train'].tokens} training tokens, not enough for one "
            f"sequence of data.sequence_length={p.config.data.sequence_length} and its last target; "
            + (left_out(p.manifest) or "prepare a larger corpus, or shorten the sequences")
        ),
    ),
    Rule(
        "validation_data_suffice",
        lambda p: p.manifest.complete and p.manifest.splits["validation"].documents == 0,
        lambda p: (
            f"data.dir={p.config.data.dir} holds no validation documents; raise data.prepare.validation_fraction and prepare "
            "again, or prepare a larger corpus"
        ),
    ),
)
"""Rules of the data folder."""
