"""`pretrain submit`: a run's job, judged on the login node, shown or handed to Slurm, and watched.

The order is that of `pretrain train`: load, judge every rule against the cluster's machine, and only then write. The job reads
the config from RUN/submitted.yaml, a copy with `--set` applied, so that an edit meanwhile changes nothing of it.
"""

import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from launch.cluster_settings import TIME, ClusterSettings, load_cluster, time_leaves_no_room
from launch.commands import program, run_folder, shown
from launch.job_states import ask_queue
from launch.slurm import (
    LOGS_FOLDER,
    Job,
    Place,
    Task,
    checked_path,
    environment,
    place_on,
    render,
    submission,
    template,
)
from launch.slurm_tools import check_known, require, sbatch
from launch.torchrun import Launch, check, check_before_data
from pretrain.checkpoint.format import latest_checkpoint
from pretrain.config import RunConfig, absolute, load_config, read_resolved, to_yaml
from pretrain.config_check import field_paths, suggest_field
from pretrain.data.manifest import MANIFEST_NAME
from pretrain.errors import ConfigError, DataError, PretrainError
from pretrain.files import append_json_line, read_json_lines, write_atomically
from pretrain.resolve import Machine, World
from pretrain.rules import check_preparation

JOBS_NAME = "jobs.jsonl"
SUBMITTED_NAMES = {"train": "submitted.yaml", "prepare": "submitted-prepare.yaml"}
"""Configs of jobs in the run's folder, by task."""


@dataclass(frozen=True)
class Plan:
    """A job, and the config that it reads."""

    job: Job
    config: RunConfig | None
    """None: of a task that reads the run's own."""
    doubts: tuple[str, ...] = ()
    """What would stand in the way of a submission, where the job is only to be shown."""


@dataclass(frozen=True)
class Submitted:
    """Jobs that are in the queue."""

    job: Job
    numbers: tuple[int, ...]
    logs: tuple[Path, ...]
    """In the order in which they are written."""
    time: float
    """When they were submitted, in seconds of the epoch."""


def submit(arguments: Namespace) -> int:
    """`pretrain submit`."""
    plan = plan_job(arguments)
    if arguments.dry_run:
        return _show(plan)
    submitted = hand_in(plan)
    _tell(submitted)
    if not arguments.watch:
        return 0
    from launch.watch import watch

    return watch(submitted)


def plan_job(arguments: Namespace) -> Plan:
    """The job that is asked for. Raises what stands in its way: ConfigError, DataError, CheckpointError, StorageError."""
    cluster = load_cluster(arguments.cluster)
    _check_time(arguments.time, cluster)
    if arguments.task == "evaluate":
        return _plan_evaluation(arguments, cluster)
    config = load_config(arguments.config, arguments.overrides)
    _check_allowed(arguments)
    run_dir = checked_path(Path(absolute(config.run_dir)), f"run.dir={config.run_dir}")
    doubts: tuple[str, ...] = ()
    if arguments.task == "prepare":
        check_preparation(config)
        place = place_on(cluster, nodes=arguments.nodes or 1, ranks=cluster.full_ranks, on_gpus=False)
    else:
        resolved, world, doubts = _judged(config, cluster, arguments)
        ranks = resolved.parallel_layout.world_size // world.nodes
        place = place_on(cluster, nodes=world.nodes, ranks=ranks, on_gpus=resolved.train.device == "cuda")
    changes = [word for name in arguments.allow_change for word in ("--allow-change", name)]
    words = (str(run_dir / SUBMITTED_NAMES[arguments.task]), *changes)
    return Plan(_job(arguments, cluster, config.name, run_dir, place, words), config, doubts)


def _plan_evaluation(arguments: Namespace, cluster: ClusterSettings) -> Plan:
    if arguments.overrides or arguments.allow_change or (arguments.nodes or 1) > 1:
        raise ConfigError(
            "--task evaluate takes a run's folder and one node; leave --set, --allow-change and --nodes out: what is evaluated "
            "is the run's last checkpoint, by its own config"
        )
    run_dir = checked_path(run_folder(arguments.config), arguments.config)
    place = place_on(cluster, nodes=1, ranks=1, on_gpus=cluster.gpus_per_node > 0)
    name = read_resolved(run_dir).name
    return Plan(_job(arguments, cluster, name, run_dir, place, (str(run_dir),)), None)


def _job(
    arguments: Namespace, cluster: ClusterSettings, name: str, run_dir: Path, place: Place, words: tuple[str, ...]
) -> Job:
    task: Task = arguments.task
    inside = "python3" if cluster.container else sys.executable
    return Job(
        task=task,
        name=name,
        run_dir=run_dir,
        folder=checked_path(Path.cwd(), "the current folder"),
        cluster=cluster,
        place=place,
        arguments=words,
        python=cluster.python or inside,
        time=arguments.time,
        after=arguments.after,
        earlier=len(read_json_lines(run_dir / JOBS_NAME)),
    )


def _check_allowed(arguments: Namespace) -> None:
    names = arguments.allow_change
    if names and arguments.task != "train":
        raise ConfigError(f"--allow-change has no meaning with --task {arguments.task}")
    for name in names:
        if name not in field_paths(RunConfig):
            raise ConfigError(f"--allow-change {name}: not a field of the config{suggest_field(RunConfig, name)}")


def _check_time(asked: str | None, cluster: ClusterSettings) -> None:
    if asked is None:
        return
    if not TIME.allows(asked):
        raise ConfigError(f"--time {asked!r}: must be text {TIME.words}")
    if time_leaves_no_room(asked, cluster.signal_lead_s):
        raise ConfigError(
            f"--time {asked}: must be more than signal_lead_s={cluster.signal_lead_s} of the cluster {cluster.name} and the "
            "60 s that Slurm may be early, or the job is told to save as soon as it has begun"
        )


def _judged(
    config: RunConfig, cluster: ClusterSettings, arguments: Namespace
) -> tuple[RunConfig, World, tuple[str, ...]]:
    """The config as the job's nodes will resolve it, the ranks it is started with, and doubts about its data."""
    # As many of either as a node takes ranks, for `auto` fills what is there.
    machine = Machine(cores=cluster.full_ranks, gpus=min(cluster.gpus_per_node, cluster.full_ranks))
    world = world_of(config, cluster, arguments.nodes)
    launch = Launch(world, allow_change=tuple(arguments.allow_change))
    resolved = check_before_data(config, launch, machine)
    reached = latest_checkpoint(config.run_dir)
    if reached is not None and reached.step >= config.train.steps:
        raise ConfigError(
            f"{config.run_dir}: already at step {reached.step} of train.steps={config.train.steps}; nothing is left to train. "
            "To go on: --set train.steps=N --allow-change train.steps"
        )
    if _data_come_later(config, after=arguments.after):
        return resolved, world, ()
    try:
        return check(config, launch, machine).config, world, ()
    except DataError as error:
        if not arguments.dry_run:
            raise
        return resolved, world, (str(error),)


def _data_come_later(config: RunConfig, *, after: int | None) -> bool:
    """Whether the data need not be where they will be read: a job before this one makes them, or nodes fetch or follow them."""
    growing = config.data.manifest == "follow" and not (config.data_dir / MANIFEST_NAME).exists()
    return after is not None or config.data.cache is not None or growing


def world_of(config: RunConfig, cluster: ClusterSettings, asked: int | None) -> World:
    """Nodes, and ranks on each where they are not the layout's to say. `asked` is `--nodes`.

    Raises ConfigError where the layout's ranks and the nodes cannot be brought together.
    """
    layout, full = config.layout, cluster.full_ranks
    sizes = {"tp": layout.tp, "pp": layout.pp, "ring": layout.ring, "ulysses": layout.ulysses, "dp": layout.dp}
    fixed = 1
    for size in sizes.values():
        fixed *= 1 if size == "auto" else size
    shown_sizes = " x ".join(f"layout.{name}={size}" for name, size in sizes.items() if size != 1)
    if asked is None:
        goes_on = layout.dp == "auto" and latest_checkpoint(config.run_dir) is not None
        ranks = read_resolved(config.run_dir).parallel_layout.world_size if goes_on else fixed
        return World(None, next(n for n in range(-(-ranks // full), ranks + 1) if ranks % n == 0))
    if layout.dp == "auto":
        if full * asked % fixed:
            raise ConfigError(
                f"--nodes {asked}: {full * asked} ranks, {full} a node, cannot be divided by {shown_sizes}; take a number of "
                f"nodes whose ranks are a multiple of {fixed}, or change the layout"
            )
        return World(full, asked)
    if fixed % asked or fixed // asked > full:
        least = -(-fixed // full)
        raise ConfigError(
            f"--nodes {asked}: {shown_sizes or 'the layout'} takes {fixed} ranks, the same number on every node and "
            f"at most {full} of them, as the cluster {cluster.name} has it; leave --nodes out ({least} at least), or set "
            "layout.dp=auto, which fills the nodes"
        )
    return World(None if layout.pp == "auto" else fixed // asked, asked)


def _show(plan: Plan) -> int:
    job = plan.job
    print(render(job, template(job.task).read_text(encoding="utf-8")), end="")
    for doubt in plan.doubts:
        print(f"note: a submission would be refused: {doubt}", file=sys.stderr)
    times = f", {job.submissions} times, a chain" if job.submissions > 1 else ""
    print(f"note: nothing was submitted or written; without --dry-run it is handed to sbatch{times}", file=sys.stderr)
    if plan.config is not None:
        print(f"note: a submission first writes the config that it reads, {job.arguments[0]}", file=sys.stderr)
    return 0


def hand_in(plan: Plan) -> Submitted:
    """Writes the config that the job reads, submits, and notes each job in RUN/jobs.jsonl.

    Raises ConfigError where Slurm refuses or a job of the task is in the queue already, PretrainError where it is unreachable.
    """
    job = plan.job
    require("sbatch")
    _refuse_second(job)
    if job.after is not None:
        check_known(job.after)
    (job.run_dir / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
    if plan.config is not None:
        said = f"# Written by `pretrain submit` for a job on {job.cluster.name}; the next submission replaces it.\n"
        write_atomically(job.run_dir / SUBMITTED_NAMES[job.task], said + to_yaml(plan.config))
    command, variables, start = submission(job, template(job.task)), environment(job), time.time()
    numbers: list[int] = []
    logs: list[Path] = []
    for _ in range(job.submissions):
        try:
            numbers.append(sbatch(command, variables))
        except PretrainError as error:
            if numbers:
                error.args = (f"{error}\nin the queue already: jobs {', '.join(map(str, numbers))}",)
            raise
        own_logs = logs_of(job, numbers[-1])
        logs += own_logs
        append_json_line(job.run_dir / JOBS_NAME, _row(job, numbers[-1], own_logs[0]))
    return Submitted(job, tuple(numbers), tuple(logs), start)


def logs_of(job: Job, number: int) -> list[Path]:
    """Where a submitted job writes: one file, or one for each job of an array."""
    folder = job.run_dir / LOGS_FOLDER
    if not job.is_array:
        return [folder / f"slurm-{number}.out"]
    return [folder / f"slurm-{number}_{place}.out" for place in range(1, job.cluster.chain_length + 1)]


def _row(job: Job, number: int, log: Path) -> dict[str, object]:
    return {
        "time": round(time.time(), 3),
        "job": number,
        "kind": job.task,
        "cluster": job.cluster.name,
        "nodes": job.place.nodes,
        "log": str(log),
        "chain": job.chain,
    }


def _refuse_second(job: Job) -> None:
    """Raises ConfigError where a job of the run and the task waits or runs: both would train the same run."""
    rows = read_json_lines(job.run_dir / JOBS_NAME)
    known = [row["job"] for row in rows if row.get("kind") == job.task and isinstance(row.get("job"), int)]
    queue = ask_queue(known)
    if not queue.answered:
        raise PretrainError(f"whether an earlier job of this run waits is not known: {queue.note}")
    for number, state in queue.jobs.items():
        raise ConfigError(
            f"{job.run_dir}: job {number} of this run is in the queue already ({state.state}); wait for it, stop it "
            f"(scancel {number}), or start another run with --set name=NEW-NAME"
        )


def _tell(submitted: Submitted) -> None:
    job, numbers = submitted.job, submitted.numbers
    place, words = job.place, " ".join(map(str, numbers))
    what = "jobs" if len(numbers) > 1 else "job"
    chain = f", a chain of {job.cluster.chain_length}" if job.chain else ""
    ranks = f" x {place.ranks} ranks" if job.task == "train" else ""
    print(f"{what} {words}: {job.name}, {job.task} on {job.cluster.name}, {place.nodes} node(s){ranks}{chain}")
    print(f"log     {shown(submitted.logs[0])}")
    print(f"status  {program()} status {shown(job.run_dir)}")
    print(f"follow  tail -F {shown(submitted.logs[0])}")
    print(f"stop    scancel {words}")
