"""What a real Slurm makes of a job's options, environment and arguments."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.cluster_settings import load_cluster
from launch.slurm import Job, environment, render, submission
from launch.slurm_tools import job_environment
from pretrain.files import read_json_lines
from tests.launch.slurm_jobs import job_on
from tests.launch.test_slurm import nasty
from tests.slurm.cluster import CONTROLLER, NODES, Cluster
from tests.slurm.training import Training, write_data

pytestmark = pytest.mark.slurm

SIMULATED = Path(__file__).parent / "simulated.yaml"
RECORDER = """#!/bin/bash
#SBATCH --nodes=1
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --requeue
#SBATCH --signal=B:USR1@300
#SBATCH --output=slurm-%j.out
# Keeps what it was started with.
env -0 > "$SLURM_JOB_ID.environment"
printf '%s\\0' "$PWD" "$@" > "$SLURM_JOB_ID.arguments"
"""
OF_ONE_SUBMISSION = (
    "JobId SubmitTime EligibleTime AccrueTime StartTime EndTime LastSchedEval Command StdErr StdOut RunTime PreemptEligibleTime "
    "BatchHost NodeList Priority SuspendTime Scheduler SecsPreSuspend StdIn DerivedExitCode Deadline PreemptTime"
)


def recorded(cluster: Cluster, number: int, folder: Path) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Of a job that ended: what Slurm says of it, the environment it was started with, its folder and arguments."""
    job = cluster.wait_for(number, "COMPLETED", timeout=60)
    words = (folder / f"{number}.environment").read_text().split("\0")
    variables = dict(word.split("=", 1) for word in words if "=" in word)
    kept = {
        name: value for name, value in variables.items() if not name.startswith("SLURM") and name not in ("TMPDIR", "_")
    }
    fields = {name: value for name, value in job.fields.items() if name not in OF_ONE_SUBMISSION.split()}
    return fields, kept, (folder / f"{number}.arguments").read_text().split("\0")[:-1]


def a_job(folder: Path, draw: random.Random) -> Job:
    cluster = load_cluster(str(SIMULATED)).model_copy(
        update={
            "options": ("--comment=a;b&c", "--nice=7", "--exclude=n4"),
            "environment": {"NCCL_SOCKET_IFNAME": "^lo,docker", "NCCL_IB_TIMEOUT": 22},
            "memory_gib": 0.5,
            "exclusive": draw.choice((True, False)),
            "requeue": draw.choice(("requeue", "never", "chain")),
        }
    )
    words = tuple(nasty(draw, folder / "canary").replace("\0", "0") for _ in range(3))
    job = job_on(cluster, nodes=draw.choice((1, 2)), ranks=draw.choice((1, 2)))
    return replace(job, run_dir=folder / "run", folder=folder, arguments=words, time="5")


def test_a_submission_and_its_rendered_script_are_the_same_job(cluster: Cluster, tmp_path: Path) -> None:
    draw = random.Random(3)
    (tmp_path / "run/logs").mkdir(parents=True)
    (tmp_path / "recorder.sbatch").write_text(RECORDER)
    pairs: list[tuple[int, int]] = []
    for _ in range(3):
        job = a_job(tmp_path, draw)
        handed_in = cluster.run(
            CONTROLLER,
            submission(job, tmp_path / "recorder.sbatch"),
            env=job_environment({}, environment(job)),
            cwd=tmp_path,
        )
        assert handed_in.returncode == 0, handed_in.stderr
        script = tmp_path / "rendered.sbatch"
        script.write_text(render(job, RECORDER))
        by_hand = cluster.run(
            CONTROLLER, ["sbatch", "--parsable", str(script)], env={"PRETRAIN_CHAIN": "foreign"}, cwd=Path("/")
        )
        assert by_hand.returncode == 0, by_hand.stderr
        pairs.append((int(handed_in.stdout), int(by_hand.stdout)))
        fields, variables, words = recorded(cluster, pairs[-1][0], tmp_path)
        other_fields, *rest = recorded(cluster, pairs[-1][1], tmp_path)
        assert other_fields == fields and rest == [variables, words]
        assert words == [str(tmp_path), *job.arguments]
        assert variables.items() >= environment(job).items()
        assert (fields["JobName"], fields["NumNodes"]) == (job.chain or "my-model", str(job.place.nodes))
        assert fields["Requeue"] == str(int(job.cluster.requeue == "requeue"))
        assert (fields["Comment"], fields["TimeLimit"], fields["MinMemoryNode"]) == ("a;b&c", "00:05:00", _memory(job))
    assert {file.name for file in (tmp_path / "run/logs").iterdir()} == {
        f"slurm-{n}.out" for pair in pairs for n in pair
    }
    assert not (tmp_path / "canary").exists()


def _memory(job: Job) -> str:
    return f"{int((job.place.memory_gib or 0) * 1024)}M"


def test_slurm_refuses_in_its_own_words(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"extends: {SIMULATED}\npartition: none\n")
    (tmp_path / "run.yaml").write_text("extends: parity.yaml\nlayout: {pp: 1, dp: 2}\n")
    words = ["submit", "run.yaml", "--cluster", "c.yaml", "--after", "1", "--nodes", "1"]
    done = cluster.run(CONTROLLER, [sys.executable, "-m", "launch", *words], cwd=tmp_path, env=_project())
    assert (done.returncode, "invalid partition specified: none" in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_chain_is_queued_job_by_job(cluster: Cluster, tmp_path: Path) -> None:
    """While all nodes are drained: the first would wait for one, the others for the first."""
    for node in NODES:
        cluster.drain(node)
    (tmp_path / "c.yaml").write_text(f"extends: {SIMULATED}\nrequeue: chain\nchain_length: 3\n")
    (tmp_path / "run.yaml").write_text(
        "extends: parity.yaml\nlayout: {pp: 1, dp: 2}\ndata: {manifest: follow, order: {method: eras}}\n"
    )
    command = [sys.executable, "-m", "launch", "submit", "run.yaml", "--cluster", "c.yaml"]
    done = cluster.run(CONTROLLER, command, cwd=tmp_path, env=_project())
    assert done.returncode == 0, done.stderr
    numbers = [int(word) for word in done.stdout.splitlines()[0].removeprefix("jobs ").split(":")[0].split()]
    assert len(numbers) == 3
    waits_for = [cluster.job(number).fields["Dependency"] for number in numbers]
    assert waits_for[0] == "(null)" and all(word.startswith("singleton") for word in waits_for[1:])
    again = cluster.run(CONTROLLER, command, cwd=tmp_path, env=_project())
    assert again.returncode == 2 and "is in the queue already (PENDING)" in again.stderr


def test_a_chain_is_watched_to_the_end_of_its_run(cluster: Cluster, tmp_path: Path) -> None:
    """Trained with the real templates by the first of two jobs, which leaves the second nothing; then evaluated."""
    write_data(tmp_path)
    run = Training(cluster, tmp_path, "watched", steps=2, interval=2, nodes=1)
    (tmp_path / "c.yaml").write_text(f"extends: {SIMULATED}\nrequeue: chain\nchain_length: 2\n")
    command = [sys.executable, "-m", "launch", "submit", "--cluster", "c.yaml", "--watch"]
    trained = cluster.run(
        CONTROLLER, [*command, str(run.config), "--allow-change", "train"], cwd=tmp_path, env=_project(), timeout=300
    )
    said = f"{trained.stdout}\n{trained.stderr}"
    assert trained.returncode == 0, said
    assert run.step() == 2 and "1 more wait" in trained.stderr and "step 2 validation" in trained.stdout, said
    assert len(read_json_lines(run.run_dir / "attempts.jsonl")) == 1, said
    evaluated = cluster.run(
        CONTROLLER, [*command, str(run.run_dir), "--task", "evaluate"], cwd=tmp_path, env=_project(), timeout=300
    )
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert "validation loss" in evaluated.stdout
    jobs = read_json_lines(run.run_dir / "jobs.jsonl")
    assert [(row["kind"], row["nodes"]) for row in jobs] == [("train", 1), ("train", 1), ("evaluate", 1)]


def _project() -> dict[str, str]:
    return {"PYTHONPATH": str(Path(__file__).parents[2])}
