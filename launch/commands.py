"""What each command does: it reads the config or the run, calls one public function of a room, and prints its result.

Everything here is imported when a command runs, and heavy rooms within the function that needs them. `quickstart` is these same
functions one after another.
"""

import importlib.util
import os
import shlex
import shutil
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from launch.nodes import Nodes, parse_endpoint
from launch.shard_agent import check_local
from launch.signals import ending_signals
from launch.torchrun import Launch, run
from pretrain.config import RESOLVED_NAME, RunConfig, load_config, read_resolved
from pretrain.errors import CheckFailed, CheckpointError, ConfigError, Interrupted
from pretrain.model.flops import num_parameters
from pretrain.resolve import World
from pretrain.rules import check_preparation

if TYPE_CHECKING:
    from rich.console import Console

Backend = Literal["ray", "local"]

ONE_PROCESS_PARAMETERS = 3_000_000_000
"""Largest model that is evaluated and sampled at the end of a run unasked: 12 GB in fp32."""


@dataclass(frozen=True)
class Crew:
    """Who prepares data."""

    backend: Backend
    workers: int | None
    """Tasks at once; None: as many as cores."""
    address: str | None
    """Of a running Ray cluster; None: one is started."""

    @classmethod
    def of(cls, arguments: Namespace) -> "Crew":
        """As the options say. Raises ConfigError where they do not fit."""
        return cls(choose_backend(arguments.backend, arguments.address), arguments.workers, arguments.address)


def prepare(arguments: Namespace) -> None:
    """`pretrain prepare`."""
    prepare_data(load_config(arguments.config, arguments.overrides), Crew.of(arguments))


def train_tokenizer(arguments: Namespace) -> None:
    """`pretrain tokenizer train`."""
    from data_prep.pipeline import prepare_tokenizer

    config = load_config(arguments.config, arguments.overrides)
    check_preparation(config)
    crew = Crew.of(arguments)
    for line in prepare_tokenizer(
        config.data, Path(arguments.out), crew.backend, crew.workers, console(), crew.address
    ):
        print(line)


def train(arguments: Namespace) -> None:
    """`pretrain train`."""
    resumed = again(
        "train", arguments.config, *_spread(arguments), overrides=arguments.overrides, nproc=arguments.nproc
    )
    with ending_signals(resumed) as signals:
        config = load_config(arguments.config, arguments.overrides)
        nodes = _nodes(arguments)
        launch = Launch(
            world=World(arguments.nproc, nodes.count),
            nodes=nodes,
            allow_change=tuple(arguments.allow_change),
            again=resumed,
            max_restarts=arguments.max_restarts,
        )
        trained = run(config, launch, signals)
        if trained.speaks:
            print(f"report: {shown(finish(trained.config, renew=trained.by_this_launch))}")


def parity(arguments: Namespace) -> None:
    """`pretrain parity`. Every refusal comes before torch is imported."""
    with _sigterm_unwinds():
        _parity(arguments)


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Within it SIGTERM ends the command as Ctrl-C does: ranks are ended, their files removed, what is done is shown."""

    def stop(*_: object) -> None:
        raise Interrupted("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parity(arguments: Namespace) -> None:
    from pretrain.parity.layouts import check_size, read_cases

    asked, steps, device = arguments.random, arguments.steps, arguments.device
    if (asked is None) == (arguments.config is None):
        raise ConfigError("pretrain parity takes either a CONFIG with --layouts, or --random N")
    if asked is not None and (arguments.layouts or arguments.overrides):
        raise ConfigError("--random draws its own models and layouts; leave --layouts and --set out")
    if asked is None and not arguments.layouts:
        raise ConfigError('--layouts is missing: name at least one, for example --layouts "tp=2" "pp=2,tp=2"')
    if asked is not None:
        from pretrain.parity.fuzz import check_random

        check_random(
            asked, arguments.seed, device=device, steps=steps, timeout_s=arguments.timeout_s, console=console()
        )
        return
    texts = ["", *arguments.layouts]
    cases, notes = read_cases(arguments.config, arguments.overrides, texts, device=device, steps=steps)
    check_size(cases, steps)
    from pretrain.parity.command import check_layouts

    check_layouts(cases, notes, device=device, steps=steps, timeout_s=arguments.timeout_s, console=console())


def evaluate(arguments: Namespace) -> None:
    """`pretrain evaluate`."""
    run_dir = run_folder(arguments.run)
    from pretrain.evaluate import evaluate

    evaluate(run_dir, console())


def generate(arguments: Namespace) -> None:
    """`pretrain generate`."""
    run_dir = run_folder(arguments.run)
    from pretrain.generate import generate

    generate(
        run_dir,
        arguments.prompt,
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        beam_size=arguments.beam,
        seed=arguments.seed,
        console=console(),
    )


def report(arguments: Namespace) -> None:
    """`pretrain report`."""
    run_dir = run_folder(arguments.run)
    from pretrain.metrics.report import write_report

    print(shown(write_report(run_dir)))


def list_checkpoints(arguments: Namespace) -> None:
    """`pretrain checkpoint list`."""
    from pretrain.checkpoint.format import committed_checkpoints, fenced_checkpoints

    run_dir = run_folder(arguments.run)
    refs, late = committed_checkpoints(run_dir), fenced_checkpoints(run_dir)
    if not refs:
        print("no committed checkpoint")
    for ref in (*refs, *late):
        size = sum(file.stat().st_size for file in ref.path.iterdir() if file.is_file())
        told = "  does not count: a later launch had begun" if ref in late else ""
        print(f"step {ref.step:>10,}  generation {ref.generation:>3}  {size / 1e6:>10,.1f} MB  {ref.path}{told}")


def verify_checkpoints(arguments: Namespace) -> None:
    """`pretrain checkpoint verify`. Raises CheckFailed where one is damaged, CheckpointError where there is none."""
    from pretrain.checkpoint.format import committed_checkpoints
    from pretrain.checkpoint.verify import problems

    run_dir = run_folder(arguments.run)
    refs = committed_checkpoints(run_dir)
    if not refs:
        raise CheckpointError(f"{run_dir}: there is no committed checkpoint to verify")
    damaged = 0
    for ref in refs:
        found = [str(problem) for problem in problems(ref, reader=0, readers=1)]
        damaged += bool(found)
        print("\n  ".join([f"{'damaged' if found else 'whole':8} {ref}", *found]))
    if damaged:
        raise CheckFailed(f"{damaged} of {len(refs)} checkpoints damaged; training goes on from the newest whole one")


def doctor(_: Namespace) -> int:
    """`pretrain doctor`."""
    from launch.doctor import doctor

    return doctor()


def quickstart(arguments: Namespace) -> None:
    """`pretrain quickstart`."""
    from launch.quickstart import quickstart

    quickstart(
        arguments.config,
        arguments.overrides,
        crew=Crew.of(arguments),
        nproc=arguments.nproc,
    )


def prepare_data(config: RunConfig, crew: Crew) -> None:
    """Makes the data folder of a config, or says that it is there."""
    from data_prep.pipeline import prepare

    check_preparation(config)
    check_local(config)
    for line in prepare(config, crew.backend, crew.workers, console(), crew.address).lines():
        print(line)


def choose_backend(asked: Backend | None, address: str | None = None) -> Backend:
    """Ray where nothing else is asked for and Ray is installed. Raises ConfigError where it was asked for and is not."""
    installed = importlib.util.find_spec("ray") is not None
    if address is not None and (asked == "local" or not installed):
        why = "--backend local has no cluster" if asked == "local" else "ray is not installed; pip install ray"
        raise ConfigError(f"--address {address}: {why}")
    if asked == "ray" and not installed:
        raise ConfigError("--backend ray: ray is not installed; pip install ray, or use --backend local")
    if asked is None and not installed:
        print("ray is not installed: preparing in this process (--backend local)", file=sys.stderr)
    return asked or ("ray" if installed else "local")


def finish(config: RunConfig, *, renew: bool) -> Path:
    """What follows the last step of a run: evaluation, samples, report; returns the report.

    Args:
        config: of the run, resolved.
        renew: whether something was trained since they were made; else only what is missing is made.
    """
    from pretrain.metrics.report import write_report

    evaluate_and_sample(config, renew=renew)
    return write_report(config.run_dir)


def evaluate_and_sample(config: RunConfig, *, renew: bool) -> None:
    """Evaluates a run's last checkpoint and writes its samples, in this process; a model too large for that is left out."""
    from pretrain.evaluate import evaluate
    from pretrain.generate import write_samples
    from pretrain.metrics.evaluation import EVALUATION_FILE
    from pretrain.metrics.jsonl import SAMPLES_FILE

    run_dir, parameters = config.run_dir, num_parameters(config.model)
    if parameters > ONE_PROCESS_PARAMETERS:
        print(
            f"{parameters:,} parameters are left to `pretrain evaluate` and `pretrain generate`, which load them in one process"
        )
        return
    for name, make in ((EVALUATION_FILE, evaluate), (SAMPLES_FILE, write_samples)):
        if renew or not (run_dir / name).exists():
            make(run_dir, console())
        else:
            print(f"{shown(run_dir / name)}: reused")


def shown(path: Path) -> str:
    """A path as a person would write it here."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def run_folder(name: str) -> Path:
    """The folder of a run. Raises ConfigError where it is none."""
    run_dir = Path(name).expanduser().absolute()
    if not (run_dir / RESOLVED_NAME).exists():
        known = sorted(str(path.parent) for path in Path("runs").glob(f"*/{RESOLVED_NAME}"))
        there = f"; here are {', '.join(known)}" if known else "; `pretrain train CONFIG` makes one"
        raise ConfigError(f"{name}: not the folder of a run (it has no {RESOLVED_NAME}){there}")
    read_resolved(run_dir)
    return run_dir


def program() -> str:
    """This program as a person starts it here: `pretrain` where it is on the path, else the way to it."""
    started = Path(sys.argv[0])
    if started.name != "pretrain":
        return "python -m launch"
    found = shutil.which("pretrain")
    return "pretrain" if found and Path(found).samefile(started) else shlex.quote(shown(started.absolute()))


def again(*words: str, overrides: Sequence[str] = (), nproc: int | None = None) -> str:
    """A command with its options, as it is typed again."""
    options = [word for override in overrides for word in ("--set", override)]
    return f"{program()} {shlex.join([*words, *options, *(['--nproc', str(nproc)] if nproc else [])])}"


def _spread(arguments: Namespace) -> list[str]:
    """The options of a launch on several nodes, or with restarts, as they are typed again; K stands for each node's number."""
    given = {
        "--nnodes": arguments.nnodes if arguments.nnodes > 1 else None,
        "--rendezvous": arguments.rendezvous,
        "--node-rank": None if arguments.node_rank is None else "K",
        "--max-restarts": arguments.max_restarts or None,
    }
    return [word for option, value in given.items() if value is not None for word in (option, str(value))]


def _nodes(arguments: Namespace) -> Nodes:
    count, rank, endpoint = arguments.nnodes, arguments.node_rank, arguments.rendezvous
    if rank is not None and rank >= count:
        raise ConfigError(f"--node-rank {rank} must be from 0 to {count - 1}, for --nnodes {count}")
    if count == 1:
        if endpoint is not None:
            raise ConfigError("--rendezvous has no meaning with one node; leave it out, or give --nnodes")
        return Nodes()
    if endpoint is None:
        raise ConfigError(f"--nnodes {count} needs --rendezvous HOST:PORT, where HOST is node 0: the same on all nodes")
    parse_endpoint(endpoint)
    return Nodes(count, rank, endpoint)


def console() -> "Console":
    """Where progress and results are printed."""
    from rich.console import Console

    return Console()
