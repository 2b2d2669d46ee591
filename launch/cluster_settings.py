"""A cluster: what `pretrain submit` asks Slurm for, and what its nodes need to know. One YAML file each, `configs/clusters/`.

Files are read as run configs are: strict, with `extends`, every mistake with its file and line. Every text that reaches Slurm or
a job's environment is held against an allow-list: no blanks, quotes, line ends, `$`, and no leading dash, so that a value can
neither end its option nor start another. Secrets have no place here: what the user exported reaches the job.
"""

import difflib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pretrain.config_check import validate
from pretrain.config_source import read_document, shipped_configs
from pretrain.errors import ConfigError
from pretrain.rule import Rule
from pretrain.rules import broken_rules, raise_all
from pretrain.settings import Allowed, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Settings

FOLDER = "clusters"
"""Of the shipped configs, and of a project's own: configs/clusters/NAME.yaml."""

TIME = Allowed(
    r"[0-9]{1,5}(:[0-9]{2}){0,2}|[0-9]{1,3}-[0-9]{1,2}(:[0-9]{2}){0,2}",
    "in Slurm's form: minutes, HH:MM:SS or D-HH:MM:SS",
)
_PATH = "[A-Za-z0-9_./+@=,:~-]"
PATH = Allowed(f"(?!-){_PATH}+", "that is a path of letters, digits and _./+@=,:~-")
"""Of a run's folder too: blanks, quotes and `%` mean something else to Slurm's file patterns and to batch scripts."""
_WORD = Allowed(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*", "of letters, digits and _.@+-, not starting with a dash")
_WORDS = Allowed(
    r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*(,[A-Za-z0-9_][A-Za-z0-9_.@+-]*)*",
    "of letters, digits and _.@+-; several with commas",
)
_FEATURES = Allowed(
    r"[A-Za-z0-9_(\[][A-Za-z0-9_.,:*&|()\[\]-]*",
    "that is a feature or an expression of features: a100&ib, [rack1|rack2]",
)
_MODULE = Allowed(r"[A-Za-z0-9_][A-Za-z0-9_./+-]*", "that is a module's name, such as cuda/12.8")
_INTERFACE = Allowed(r"[\^=]?[A-Za-z0-9_][A-Za-z0-9_.,@-]*", "that is a network interface, such as ib0 or eno1")
_IMAGE = Allowed(
    r"[A-Za-z0-9_./~][A-Za-z0-9_./:@#+~-]*", "that is an image's address or file: nvcr.io#nvidia/pytorch:25.06-py3"
)
_MOUNT = Allowed(
    r"/[A-Za-z0-9_./+@-]*(:/[A-Za-z0-9_./+@-]*(:[a-z]+)?)?", "in the form /outside:/inside, or :ro behind it"
)

_FURTHER = (
    *("begin", "clusters", "comment", "contiguous", "core-spec", "cpu-freq", "deadline", "delay-boot", "distribution"),
    *(
        "exclude",
        "gpu-bind",
        "gpu-freq",
        "gres",
        "gres-flags",
        "hint",
        "licenses",
        "mail-type",
        "mail-user",
        "mem-bind",
    ),
    *("mem-per-gpu", "network", "nice", "nodelist", "prefer", "priority", "segment", "switches", "threads-per-core"),
    *("tmp", "use-min-nodes", "wckey"),
)
"""Options of sbatch that only choose where and when a job runs. Not among them: what names a file or a command that is run."""
_OPTION = Allowed(
    rf"--(?:{'|'.join(_FURTHER)})(?:=[A-Za-z0-9_][A-Za-z0-9_.,:;@/+=*&|()\[\]-]*)?",
    f"--NAME=VALUE without blanks or quotes, NAME one of {', '.join(_FURTHER)}",
)

_OF_LIBRARIES = (
    *("NCCL", "GLOO", "UCX", "UCC", "FI", "MLX5", "RDMAV", "IBV", "OMP", "KMP", "MKL", "OPENBLAS", "MALLOC", "CUDA"),
    *(
        "TORCH",
        "TORCHINDUCTOR",
        "PYTORCH",
        "TRITON",
        "DS",
        "HF",
        "WANDB",
        "RAY",
        "AWS",
        "S3",
        "GOOGLE",
        "FSSPEC",
        "LUSTRE",
    ),
)
_SECRET = r"(?:[A-Z0-9_]*_)?(?:API_?)?(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|AUTH)S?(?:_[A-Z0-9_]*)?"
_LOADS_CODE = (
    r"[A-Z0-9_]*(?:INJECTION|PRELOAD|LIBRARY|PATH|HOOK|FUNC|CONF_FILE|COMMAND|MODULE_DIR|EXTENSIONS_DIR|_CXX|BASE_URL)"
    r"[A-Z0-9_]*"
)
VARIABLE = Allowed(
    rf"(?!(?:{_SECRET}|{_LOADS_CODE})$)(?:(?:{'|'.join(_OF_LIBRARIES)})_[A-Z0-9_]+"
    r"|TMPDIR|TZ|LANG|LC_ALL|TOKENIZERS_PARALLELISM|(?:HTTPS?|NO|ALL)_PROXY|(?:https?|no|all)_proxy)",
    f"that starts with one of {'_, '.join(_OF_LIBRARIES)}_, or TMPDIR, TZ, LANG, LC_ALL, TOKENIZERS_PARALLELISM, a proxy; never "
    "one that holds a secret (*KEY*, *TOKEN*, *SECRET*, *PASSWORD*: export it before you submit) or that chooses which code is "
    "loaded or where secrets go (*PATH*, *PRELOAD*, *LIBRARY*, *HOOK* and the like: write it into the file of `setup`)",
)
_VALUE = Allowed(
    r"[A-Za-z0-9_./:,=+^%*][A-Za-z0-9_./:,=+^%*-]*", "of letters, digits and _./:,=+^%*-, not starting with a dash"
)


class ContainerSettings(Settings):
    """The container in which the job's programs run."""

    kind: Literal["pyxis", "apptainer"]
    """What starts it: srun's plugin pyxis (enroot), or apptainer."""
    image: Annotated[str, _IMAGE]
    """As `--container-image` of pyxis takes it, or apptainer's file or address. It holds Python and this package."""
    mounts: tuple[Annotated[str, _MOUNT], ...] = Field(default=(), strict=False)
    """Folders of the node that are seen inside, /outside:/inside. The run's and the data's folder must be among them."""


class PreflightSettings(Settings):
    """What every node must have before ranks start; one that lacks it is excluded, and the job queued again."""

    min_memory_gib: NonNegativeFloat = 0
    """GiB of free memory. 0: not asked, for how much a run needs depends on the model."""
    min_disk_gib: NonNegativeFloat = 0
    """GiB free in the scratch folder. 0: not asked."""
    min_gbit_s: NonNegativeFloat = 0
    """Gbit/s of an all-reduce between nodes, as its algorithm counts them. 0: timed and told, not judged."""


class ClusterSettings(Settings):
    """All of a cluster."""

    name: Annotated[str, _WORD]
    """Of the cluster; by default the file's name."""
    gpus_per_node: NonNegativeInt
    """GPUs of a node. 0: a cluster of CPUs."""
    gpu_type: Annotated[str, _WORD] | None = None
    """Slurm's name of the GPUs, for sites that ask for it. null: any."""
    ranks_per_node: PositiveInt | None = None
    """Ranks of a full node. null: one a GPU, which is what training on GPUs takes."""
    cpus_per_node: PositiveInt
    """Cores that a job asks for on a full node; ranks share them."""
    memory_gib: PositiveFloat | None = None
    """GiB of memory that a job asks for on a full node. null: all of it, which only a job with whole nodes can ask for."""
    partition: Annotated[str, _WORDS] | None = None
    """Slurm's partition, or several with commas. null: the site's default."""
    cpu_partition: Annotated[str, _WORDS] | None = None
    """Partition of jobs that need no GPU (data preparation). null: as `partition`."""
    account: Annotated[str, _WORD] | None = None
    """What is charged. null: the user's default."""
    qos: Annotated[str, _WORD] | None = None
    """Quality of service. null: the default."""
    time_limit: Annotated[str, TIME] | None = None
    """Of one job, in Slurm's form; a run may take many. `--time` overrides it. null: the partition's default."""
    constraint: Annotated[str, _FEATURES] | None = None
    """Features that nodes must have. null: any node."""
    reservation: Annotated[str, _WORD] | None = None
    """Reservation that is used. null: none."""
    exclusive: bool = True
    """Whole nodes. Others' work beside the ranks slows every rank of a run; false: ask for the part that the ranks take."""
    options: tuple[Annotated[str, _OPTION], ...] = Field(default=(), strict=False)
    """Further options of sbatch, --NAME=VALUE."""
    interface: Annotated[str, _INTERFACE] | None = None
    """Network interface over which nodes find each other; keep it a private one. null: that of the node's own name."""
    scratch: Annotated[str, PATH] | None = None
    """Folder on each node's own disk. null: none is used."""
    modules: tuple[Annotated[str, _MODULE], ...] = Field(default=(), strict=False)
    """Loaded in the job by `module load`, in this order."""
    setup: Annotated[str, PATH] | None = None
    """A bash file that the job sources before all else, for what the fields here do not say. null: none."""
    python: Annotated[str, PATH] | None = None
    """Interpreter on the nodes. null: the one that submits; in a container, its `python3`."""
    container: ContainerSettings | None = None
    """null: programs run on the node itself."""
    environment: dict[Annotated[str, VARIABLE], Annotated[str, _VALUE] | int] = Field(default_factory=dict)
    """Variables of libraries (NCCL, UCX, ...) in the job. They replace what the user's environment has."""
    requeue: Literal["requeue", "chain", "never"] = "requeue"
    """What a preempted or faulty job does: goes back into the queue; leaves the rest to the next job of a chain, where a site
    forbids requeue; ends."""
    chain: Literal["singleton", "array"] = "singleton"
    """Form of a chain: jobs of one name, one at a time (--dependency=singleton), or an array of which one runs at a time."""
    chain_length: PositiveInt = 8
    """Jobs of a chain, each of `time_limit`. The first that finds the run done ends the chain."""
    signal_lead_s: PositiveInt = 300
    """Seconds before the time limit at which the run is told to save: twice what a checkpoint takes. Slurm may be 60 s early."""
    max_restarts: NonNegativeInt = 3
    """Restarts in place, within a job, after faults without a new checkpoint in between."""
    max_faults: NonNegativeInt = 3
    """Requeues after faults without a new checkpoint in between. Preemption is no fault and has no limit."""
    preflight: PreflightSettings = PreflightSettings()

    @property
    def full_ranks(self) -> int:
        """Ranks of a full node."""
        return self.ranks_per_node or self.gpus_per_node


def load_cluster(name: str) -> ClusterSettings:
    """A cluster by its file or by name: a project's own configs/clusters/NAME.yaml, or a shipped one. Raises ConfigError."""
    file = _find(name)
    document = read_document(file)
    document.tree.setdefault("name", file.name.removesuffix(file.suffix))
    cluster = validate(ClusterSettings, document, str(file))
    raise_all(ConfigError, [f"{file}: {message}" for message in broken_rules(CLUSTER_RULES, cluster)])
    return cluster


def _find(name: str) -> Path:
    given, shipped = Path(name).expanduser(), shipped_configs() / FOLDER
    own = Path("configs") / FOLDER
    places = [given] if given.suffix in (".yaml", ".yml") else []
    if given.name == name:  # a bare name
        places += [folder / f"{given.name.removesuffix('.yaml')}.yaml" for folder in (own, shipped)]
    for place in places:
        if place.is_file():
            return place
    known = sorted({file.stem for folder in (own, shipped) for file in folder.glob("*.yaml")})
    close = difflib.get_close_matches(given.stem, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known) or 'none'};"
    raise ConfigError(f"--cluster {name}: there is no such cluster; {hint} another is a YAML file: --cluster my.yaml")


def minutes(time: str) -> float:
    """Minutes of a time in Slurm's form."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        hours, minute, second = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minute, second = parts
    else:
        hours, (minute, second) = 0, (*parts, 0)[:2]
    return (int(days or 0) * 24 + hours) * 60 + minute + second / 60


def time_leaves_no_room(time: str | None, lead_s: int) -> bool:
    """Whether a job of this time limit would be told to save as soon as it has begun: Slurm may be 60 s early."""
    return time is not None and 0 < minutes(time) * 60 <= lead_s + 60


_OF_INTERFACE = frozenset({"GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"})

CLUSTER_RULES: tuple[Rule[ClusterSettings], ...] = (
    Rule(
        "nodes_have_ranks",
        lambda c: c.full_ranks == 0,
        lambda c: "ranks_per_node is missing: with gpus_per_node=0 nothing says how many ranks a node takes",
    ),
    Rule(
        "ranks_have_gpus",
        lambda c: 0 < c.gpus_per_node < (c.ranks_per_node or 0),
        lambda c: (
            f"ranks_per_node={c.ranks_per_node} must be at most gpus_per_node={c.gpus_per_node}: each rank needs a GPU of its "
            "own; leave ranks_per_node out"
        ),
    ),
    Rule(
        "shared_nodes_share_memory",
        lambda c: not c.exclusive and c.memory_gib is None,
        lambda c: (
            "memory_gib is missing: with exclusive=false a job asks for its part of a node's memory; say how much there is"
        ),
    ),
    Rule(
        "interface_is_named_once",
        lambda c: c.interface is not None and bool(_OF_INTERFACE & c.environment.keys()),
        lambda c: (
            f"interface={c.interface} sets {' and '.join(sorted(_OF_INTERFACE))}, which environment sets too; leave one out"
        ),
    ),
    Rule(
        "time_limit_leaves_room",
        lambda c: time_leaves_no_room(c.time_limit, c.signal_lead_s),
        lambda c: (
            f"time_limit={c.time_limit} must be more than signal_lead_s={c.signal_lead_s} and the 60 s that Slurm may be early, "
            "or a job is told to save as soon as it has begun"
        ),
    ),
)
"""Rules between a cluster's fields."""
