"""Jobs for tests, and batch scripts taken apart: by bash, as it reads them, and by Slurm's rule for their header.

python -m tests.launch.slurm_jobs      writes tests/golden/slurm anew; look at the difference before you commit it
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from launch.cluster_settings import ClusterSettings, load_cluster
from launch.slurm import Job, Task, place_on, render, template

GOLDEN = Path(__file__).parents[1] / "golden/slurm"
NODES = {"one-box-8gpu": 1, "h100-infiniband-64x8": 64, "cloud-preemptible": 4, "no-requeue": 8}
"""The shipped clusters, each with the nodes of its golden file."""


def job_on(cluster: ClusterSettings, task: Task = "train", *, nodes: int = 1, ranks: int | None = None) -> Job:
    """A job as `pretrain submit` makes it, of a run in /shared."""
    return Job(
        task=task,
        name="my-model",
        run_dir=Path("/shared/runs/my-model"),
        folder=Path("/shared"),
        cluster=cluster,
        place=place_on(cluster, nodes=nodes, ranks=ranks or cluster.full_ranks, on_gpus=cluster.gpus_per_node > 0),
        arguments=("/shared/runs/my-model/submitted.yaml",),
        python=cluster.python or ("python3" if cluster.container else "/shared/venv/bin/python"),
    )


def rendered(name: str) -> str:
    """The golden text of a shipped cluster, made anew."""
    return render(job_on(load_cluster(name), nodes=NODES[name]), template("train").read_text())


def header(script: str) -> list[str]:
    """The options that sbatch reads in a script: words behind #SBATCH, up to the first line that is a command."""
    found: list[str] = []
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            found += line.split()[1:]
        elif line.strip() and not line.startswith("#"):
            break
    return found


@dataclass(frozen=True)
class Heard:
    """What a batch script's body finds when it starts."""

    environment: dict[str, str]
    arguments: list[str]


_TELL = 'env -0; printf "\\1\\0"; for word in "$@"; do printf "%s\\0" "$word"; done; exit 0'


def without_body(text: str) -> str:
    """A template's text up to the end of its header."""
    return text[: text.index("\n", text.rindex("\n#SBATCH ") + 1) + 1]


def run_head(script: str, folder: Path, given: dict[str, str]) -> Heard:
    """Runs a script that was rendered of a template without body under bash, with a PATH and the given variables alone."""
    environ = {"PATH": os.environ["PATH"], **given}
    said = subprocess.run(
        ["bash", "-c", f"{script}\n{_TELL}\n"], env=environ, cwd=folder, capture_output=True, check=True
    )
    assert said.stderr == b""
    environment, _, arguments = said.stdout.decode().partition("\1\0")
    variables = dict(word.split("=", 1) for word in environment.split("\0") if word)
    return Heard(
        {name: value for name, value in variables.items() if name not in ("PATH", "PWD", "SHLVL", "_", "OLDPWD")},
        arguments.split("\0")[:-1],
    )


if __name__ == "__main__":
    for cluster_name in NODES:
        (GOLDEN / f"{cluster_name}.sbatch").write_text(rendered(cluster_name))
