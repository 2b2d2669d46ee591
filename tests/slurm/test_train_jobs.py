"""Jobs of slurm/train.sbatch with the real trainer, through what happens to jobs: bad nodes, time limits, deaths, preemption."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretrain.files import read_json_lines
from tests.slurm.cluster import SCRATCH, Cluster
from tests.slurm.jobs import Job
from tests.slurm.training import Training, write_data

STEPS = 24
INTERVAL = 4
CHAIN = {"PRETRAIN_REQUEUE": "chain", "PRETRAIN_CHAIN": "of the refused"}
START_S = 400
"""From a job's start to its first step, on a machine with much else to do."""

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("runs")
    write_data(made)
    return made


def nodes_of(job: Job) -> list[str]:
    """The two nodes of a job, of a set as Slurm writes it: n[1-2], n[1,3]."""
    first, last = job.nodes.removeprefix("n[").removesuffix("]").replace("-", ",").split(",")
    return [f"n{first}", f"n{last}"]


@contextmanager
def full_scratch(cluster: Cluster, node: str) -> Iterator[None]:
    """Within it the node's local disk has a megabyte."""
    cluster.output(node, ["mount", "-t", "tmpfs", "-o", "size=1m", "full", str(SCRATCH)])
    try:
        yield
    finally:
        cluster.output(node, ["umount", str(SCRATCH)])


@pytest.fixture(scope="module")
def twin(_session_cluster: Cluster, folder: Path) -> dict[int, float]:
    """Losses of a run that was left alone, once a node without room had been told apart."""
    cluster = _session_cluster
    run = Training(cluster, folder, "twin", steps=STEPS, interval=INTERVAL)
    limits = {"PRETRAIN_SCRATCH": str(SCRATCH), "PRETRAIN_MIN_DISK_GIB": "0.01"}
    with full_scratch(cluster, "n2"):
        number = run.submit(env=limits)
        done = cluster.wait_for(number, "COMPLETED", "FAILED", timeout=2 * START_S)
    assert (done.state, done.restarts, done.fields["ExcNodeList"]) == ("COMPLETED", 1, "n2"), run.said()
    return run.losses()


def test_a_node_that_is_not_fit_is_named_and_excluded_and_the_job_runs_without_it(
    twin: dict[int, float], folder: Path
) -> None:
    assert list(twin) == list(range(1, STEPS + 1))


def test_a_run_goes_on_by_itself_whatever_happens_to_its_job(
    cluster: Cluster, folder: Path, twin: dict[int, float]
) -> None:
    """A killed rank, the time limit, a killed node, preemption: one after the other in one run, which loses nothing."""
    run = Training(cluster, folder, "tried", steps=STEPS, interval=INTERVAL)
    number, draw = run.submit("--time=60"), random.Random(5)

    run.wait_for_step(2, START_S)
    refused = Training(cluster, folder, "refused", steps=STEPS, interval=INTERVAL)
    with run.held_until_told():  # Slurm looks for jobs whose time is over twice a minute
        refusal = refused.submit("--nodes=2", env=CHAIN, overrides=("--set", "layout.dp=2"))
        cluster.output("ctl", ["scontrol", "update", f"jobid={number}", "timelimit=5"])
    run.wait_until(lambda: cluster.job(number).restarts == 1, 60, "queued again at the time limit")
    cluster.output("ctl", ["scontrol", "update", f"jobid={number}", "timelimit=60"])
    limit = run.step()
    assert cluster.wait_for(refusal, "FAILED", timeout=START_S).exit_code == 2, refused.said()
    assert (cluster.job(refusal).restarts, refused.events("job")[-1]["action"]) == (0, "stop")
    assert "layout" in refused.log.read_text()
    rest_of_chain = refused.submit("--nodes=1", env=CHAIN)

    run.wait_for_step(limit + INTERVAL + draw.randint(0, INTERVAL - 1), START_S)
    time.sleep(draw.uniform(0, 0.5))  # any phase of a step
    before = max(step for step, _ in run.committed())
    cluster.kill_node(node := draw.choice(nodes_of(cluster.job(number))))
    assert cluster.wait_for(rest_of_chain, "FAILED", timeout=START_S).exit_code == 2, refused.said()
    assert len(refused.events("job")) == 4, "it started, saw that the chain is over, and ended"
    run.wait_until(lambda: cluster.job(number).restarts == 2, 60, f"queued again without {node}")
    killed = run.step()

    run.wait_for_step(killed + 1, START_S)
    rank = draw.randrange(4)
    saving = run.kill_while_saving(rank, START_S)
    run.wait_for_step(saving + 2, START_S)
    with run.held_until_told():
        urgent = cluster.submit("#!/bin/bash\n", "-N3", "--partition=urgent", "--output=/dev/null", folder=folder)
    run.wait_until(lambda: cluster.job(number).restarts == 3, 60, "queued again for an urgent job")
    preempted = run.step()
    cluster.wait_for(urgent, "COMPLETED", timeout=60)

    done = cluster.wait_for(number, "COMPLETED", "FAILED", timeout=START_S)
    assert done.state == "COMPLETED", run.said()
    starts = run.starts()
    assert starts[0] == (1, limit)
    assert starts[1] == (limit + 1, killed)
    assert starts[2][0] in (before + 1, before + INTERVAL + 1), "lost is what came after the last checkpoint"
    assert starts[3] in ((saving - INTERVAL + 1, preempted), (saving + 1, preempted)), (
        "killed within the save, or just after it"
    )
    assert starts[4] == (preempted + 1, STEPS)
    assert [event["rank"] for event in run.events("restart")] == [rank]
    assert run.losses() == twin
    assert len({folder.name.rpartition("-")[2] for folder in (run.run_dir / "wandb").glob("offline-run-*")}) == 1


def test_a_node_that_was_cut_off_commits_nothing_and_the_job_goes_on_elsewhere(cluster: Cluster, folder: Path) -> None:
    """Alone on its node the run trains on without noticing; it is held while Slurm starts it anew, and then let go."""
    run = Training(cluster, folder, "cut", steps=STEPS, interval=INTERVAL, nodes=1)
    number = run.submit()
    run.wait_for_step(INTERVAL + 1, START_S)
    node = cluster.job(number).nodes
    with run.stopped():
        before = run.committed()
        cluster.cut_off(node)
        attempts = run.run_dir / "attempts.jsonl"
        run.wait_until(lambda: len(read_json_lines(attempts)) == 2, START_S, "the next start")
    run.wait_until(lambda: "(1) stops without saving" in run.log.read_text(), START_S, "fenced out")
    done = cluster.wait_for(number, "COMPLETED", "FAILED", timeout=START_S)
    cluster.reconnect(node)
    cluster.wait_for_nodes("idle", [node], timeout=60)
    assert (done.state, done.restarts) == ("COMPLETED", 1), run.said()
    assert done.nodes != node
    assert [ref for ref in run.committed() if ref[1] == 1] in ([], before), "older ones are deleted in time"
    assert run.starts()[1] == (max(step for step, _ in before) + 1, STEPS)
    assert run.ranks() == {}
