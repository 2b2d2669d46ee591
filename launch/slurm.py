"""What a job is to Slurm, as pure functions: sbatch options, environment, arguments, and one script that holds all three.

The templates of `slurm/` are whole batch scripts with working defaults. A submission leaves them as they are and passes values
as options, environment and arguments, each a word of its own that no shell reads; nothing is pasted into a script. `render`
writes the same for a person: the template with its `#SBATCH` lines replaced and the environment and arguments, quoted, behind
them. Not taken: a template language, where one forgotten quote is an injection.
"""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.cluster_settings import PATH, ClusterSettings
from pretrain.errors import ConfigError

Task = Literal["train", "prepare", "evaluate"]

LOGS_FOLDER = "logs"
HEADER = "#SBATCH "
_OPPOSITES = {"--no-requeue": "--requeue", "--oversubscribe": "--exclusive"}


@dataclass(frozen=True)
class Place:
    """What a job asks for on each of its nodes."""

    nodes: int
    ranks: int
    """Processes of the task on each node."""
    cpus: int
    gpus: int
    memory_gib: float | None
    """None: all of it."""


@dataclass(frozen=True)
class Job:
    """All that is submitted."""

    task: Task
    name: str
    """Of the run."""
    run_dir: Path
    """Absolute; nothing in it means anything to Slurm or a shell (`checked_path`)."""
    folder: Path
    """Where the command was started, which relative paths of the config start from; as `run_dir`."""
    cluster: ClusterSettings
    place: Place
    arguments: tuple[str, ...]
    """Of the batch script."""
    python: str
    """Interpreter of the nodes."""
    time: str | None = None
    """Time limit, in Slurm's form; None: the cluster's."""
    after: int | None = None
    """Job that must have ended well before this one starts."""
    earlier: int = 0
    """Jobs of the run that were submitted before: a chain that ended must not end the next one."""

    @property
    def chain(self) -> str | None:
        """Name of the chain, which no other has: jobs of one name wait for each other."""
        if self.task != "train" or self.cluster.requeue != "chain":
            return None
        return f"{self.name}-{hashlib.sha256(f'{self.run_dir} {self.earlier}'.encode()).hexdigest()[:8]}"

    @property
    def submissions(self) -> int:
        """How many times the job is submitted: each job of a chain by itself, an array at once."""
        return self.cluster.chain_length if self.chain and self.cluster.chain == "singleton" else 1

    @property
    def is_array(self) -> bool:
        """Whether the chain is one array."""
        return self.chain is not None and self.cluster.chain == "array"


def place_on(cluster: ClusterSettings, *, nodes: int, ranks: int, on_gpus: bool) -> Place:
    """What a task with so many ranks a node asks for: the part of a node that they take, all of it where nodes are exclusive.

    `on_gpus`: whether ranks need GPUs.
    """
    full = cluster.full_ranks
    part = full if cluster.exclusive else min(ranks, full)
    memory = cluster.memory_gib
    return Place(
        nodes=nodes,
        ranks=ranks,
        cpus=max(1, cluster.cpus_per_node * part // full),
        gpus=cluster.gpus_per_node * part // full if on_gpus else 0,
        memory_gib=None if memory is None else memory * part / full,
    )


def checked_path(path: Path, what: str) -> Path:
    """A path that Slurm's file patterns and batch scripts take as it is. Raises ConfigError."""
    if not PATH.allows(str(path)):
        raise ConfigError(
            f"{what}: a job's files must lie at {PATH.words[8:]}, not {str(path)!r}; choose another folder"
        )
    return path


def options(job: Job) -> list[str]:
    """The options of sbatch. They win over the template's own."""
    cluster, place = job.cluster, job.place
    on_cpus = place.gpus == 0 and cluster.cpu_partition is not None
    gpu_type = f"{cluster.gpu_type}:" if cluster.gpu_type else ""
    values = {
        "job-name": job.chain or (job.name if job.task == "train" else f"{job.name}-{job.task}"),
        "partition": cluster.cpu_partition if on_cpus else cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "reservation": cluster.reservation,
        "constraint": cluster.constraint,
        "nodes": place.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": place.cpus,
        "gpus-per-node": f"{gpu_type}{place.gpus}" if place.gpus else None,
        "mem": "0" if place.memory_gib is None else f"{int(place.memory_gib * 1024)}M",
        "time": job.time or cluster.time_limit,
        "dependency": _dependency(job),
        "kill-on-invalid-dep": None if job.after is None else "yes",  # it would wait for ever for a job that failed
        "array": f"1-{cluster.chain_length}%1" if job.is_array else None,
        "signal": f"B:USR1@{cluster.signal_lead_s}" if job.task == "train" else None,
        "chdir": job.folder,
        "output": job.run_dir / LOGS_FOLDER / f"slurm-{'%A_%a' if job.is_array else '%j'}.out",
        "open-mode": "append",
        "export": "ALL",
    }
    given = [f"--{name}={value}" for name, value in values.items() if value is not None]
    # The template's own --exclusive is taken back by its opposite; there is no neutral word.
    sharing = "--exclusive" if cluster.exclusive else "--oversubscribe"
    requeue = "--requeue" if cluster.requeue == "requeue" else "--no-requeue"
    return [*given, sharing, requeue, *cluster.options]


def _dependency(job: Job) -> str | None:
    after = [] if job.after is None else [f"afterok:{job.after}"]
    singleton = ["singleton"] if job.chain and not job.is_array else []
    return ",".join([*after, *singleton]) or None


def environment(job: Job) -> dict[str, str]:
    """The variables that the batch script reads, and those of the cluster's libraries."""
    cluster, place, container = job.cluster, job.place, job.cluster.container
    floors = cluster.preflight
    values = {
        "PRETRAIN_RUN_DIR": job.run_dir,
        "PRETRAIN_PYTHON": job.python,
        "PRETRAIN_MODULES": " ".join(cluster.modules) or None,
        "PRETRAIN_SETUP": cluster.setup,
        "PRETRAIN_INTERFACE": cluster.interface,
        "PRETRAIN_SCRATCH": cluster.scratch,
        "PRETRAIN_CONTAINER": container.image if container else None,
        "PRETRAIN_CONTAINER_KIND": container.kind if container else None,
        "PRETRAIN_CONTAINER_MOUNTS": (",".join(container.mounts) or None) if container else None,
        "PRETRAIN_GPUS_PER_NODE": place.gpus,
        "PRETRAIN_RANKS_PER_NODE": place.ranks,
        "PRETRAIN_MIN_MEMORY_GIB": floors.min_memory_gib or None,
        "PRETRAIN_MIN_DISK_GIB": floors.min_disk_gib or None,
        "PRETRAIN_MIN_GBIT_S": floors.min_gbit_s or None,
        "PRETRAIN_MAX_RESTARTS": cluster.max_restarts,
        "PRETRAIN_MAX_FAULTS": cluster.max_faults,
        "PRETRAIN_REQUEUE": cluster.requeue,
        "PRETRAIN_CHAIN": job.chain,
        **cluster.environment,
    }
    return {name: _number(value) for name, value in values.items() if value is not None}


def _number(value: object) -> str:
    """Whole numbers without a point: bash knows no others."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def template(task: Task) -> Path:
    """The task's batch script: inside the installed package, or the checkout's `slurm/`."""
    installed = Path(__file__).parent / "templates"
    folder = installed if installed.is_dir() else Path(__file__).parents[1] / "slurm"
    return folder / f"{task}.sbatch"


def submission(job: Job, script: Path) -> list[str]:
    """The command that submits a template as the job, a word each."""
    return ["sbatch", "--parsable", *options(job), str(script), *job.arguments]


def effective_options(text: str, given: list[str]) -> list[str]:
    """The options of a template's text that stand, and those that are given: what sbatch makes of both."""
    own = [line.removeprefix(HEADER).split()[0] for line in text.splitlines() if line.startswith(HEADER)]
    known = {_key(option) for option in given}
    return [*given, *(option for option in own if _key(option) not in known)]


def _key(option: str) -> str:
    """The option's name, or that of its opposite: the last of both stands."""
    name = option.split("=")[0]
    return _OPPOSITES.get(name, name)


def render(job: Job, text: str) -> str:
    """One script that does what `submission` does, from a template's text: for eyes, and for a submission by hand."""
    lines = text.splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith(HEADER))
    last = max(index for index, line in enumerate(lines) if line.startswith(HEADER))
    return "\n".join(
        [
            *lines[:first],
            *(f"{HEADER}{option}" for option in effective_options(text, options(job))),
            "",
            'unset "${!PRETRAIN_@}"',
            *(f"export {name}={shlex.quote(value)}" for name, value in environment(job).items()),
            f"set -- {shlex.join(job.arguments)}",
            *lines[last + 1 :],
            "",
        ]
    )
