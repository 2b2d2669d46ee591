"""`pretrain submit` on a login node whose sbatch records what it is given."""

import json
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.cli import main
from launch.cluster_settings import ClusterSettings, load_cluster
from launch.slurm import environment, options, template
from launch.slurm_tools import job_environment
from launch.submit import JOBS_NAME, world_of
from pretrain.checkpoint.format import CheckpointRef
from pretrain.config import load_config
from pretrain.errors import ConfigError
from pretrain.files import append_json_line, read_json_lines
from pretrain.resolve import World
from tests.launch.slurm_fakes import FakeSlurm
from tests.launch.slurm_jobs import header
from tests.launch.test_slurm import nasty

CLUSTER = "gpus_per_node: 0\nranks_per_node: 2\ncpus_per_node: 4\npartition: main\ntime_limit: 1:00:00\n"


@pytest.fixture
def cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpus.yaml").write_text(CLUSTER)
    return "cpus.yaml"


def chained(file: str, form: str = "singleton") -> None:
    Path(file).write_text(f"{CLUSTER}requeue: chain\nchain: {form}\nchain_length: 3\n")


def test_a_job_is_submitted_noted_and_told(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", str(config_file), "--cluster", cluster_file, "--set", "train.steps=7", "--set", "layout.dp=2"]
    assert main([*command, "--nodes", "2", "--time", "30", "--allow-change", "train.steps"]) == 0
    run, ((argv, given),) = tmp_path / "run", slurm.calls
    script = argv.index(str(template("train")))
    assert argv[script + 1 :] == [str(run / "submitted.yaml"), "--allow-change", "train.steps"]
    assert {"--parsable", "--nodes=2", "--time=30", "--partition=main", f"--output={run}/logs/slurm-%j.out"} <= set(
        argv
    )
    assert (given["PRETRAIN_RANKS_PER_NODE"], given["PRETRAIN_RUN_DIR"]) == ("1", str(run))
    assert given["PRETRAIN_PYTHON"] == sys.executable
    submitted = load_config(run / "submitted.yaml")
    assert submitted == load_config(config_file, ["train.steps=7", "layout.dp=2"])
    (row,) = read_json_lines(run / JOBS_NAME)
    assert time.time() - row.pop("time") < 600
    assert row == {
        "job": 101,
        "kind": "train",
        "cluster": "cpus",
        "nodes": 2,
        "log": f"{run}/logs/slurm-101.out",
        "chain": None,
    }
    assert (run / "logs").is_dir()
    out = capsys.readouterr().out
    for word in (
        "job 101: small, train on cpus, 2 node(s) x 1 ranks",
        "run/logs/slurm-101.out",
        " status run",
        "scancel 101",
    ):
        assert word in out


def test_an_edit_of_the_config_changes_nothing_of_the_job(
    config_file: Path, cluster_file: str, slurm: FakeSlurm
) -> None:
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 0
    before = load_config(config_file)
    config_file.write_text(config_file.read_text().replace("steps: 100", "steps: 5"))
    config = slurm.calls[0][0][-1]
    assert load_config(config) == before != load_config(config_file)


def test_a_dry_run_shows_what_is_submitted_and_writes_nothing(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", str(config_file), "--cluster", cluster_file, "--nodes", "1"]
    before = sorted(tmp_path.rglob("*"))
    assert main([*command, "--dry-run"]) == 0
    script = capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    assert main(command) == 0
    argv, given = slurm.calls[0]
    words = argv[1 : argv.index(str(template("train")))]
    assert header(script)[: len(words)] == words
    head = script[: script.index("\nset -- ")]
    exported = [shlex.split(line)[1] for line in head.splitlines() if line.startswith("export ")]
    assert sorted(exported) == sorted(
        f"{name}={value}" for name, value in given.items() if name.startswith("PRETRAIN_")
    )


def test_missing_data_stop_a_submission_but_not_where_a_job_before_it_makes_them(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", str(config_file), "--cluster", cluster_file, "--set", f"data.dir={tmp_path}/none"]
    assert main(command) == 3
    assert "pretrain prepare" in capsys.readouterr().err and not (tmp_path / "run").exists() and not slurm.calls
    assert main([*command, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("#!/bin/bash\n") and "a submission would be refused" in err and f"{tmp_path}/none" in err
    assert main([*command, "--after", "77"]) == 0
    assert "--dependency=afterok:77" in slurm.calls[0][0]
    slurm.fail("scontrol", "slurm_load_jobs error: Invalid job id specified")
    assert main([*command, "--after", "78"]) == 2
    assert "--after 78: Slurm knows no such job" in capsys.readouterr().err and len(slurm.calls) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--set", "layout.dp=3"], "train.global_batch_tokens"),
        (["--set", "layout.dp=2", "--nodes", "3"], "--nodes 3: layout.dp=2 takes 2 ranks, the same number on every node"),
        (["--set", "layout.dp=8", "--nodes", "2"], "leave --nodes out (4 at least)"),
        (["--set", "layout.tp=4", "--set", "layout.pp=1", "--nodes", "1"], "2 ranks, 2 a node, cannot be divided by layout.tp=4"),
        (["--set", "train.device=cuda"], "train.device=cuda, but no usable GPU was found"),
        (["--set", "trian.steps=3"], "trian is not a field of the config; did you mean train?"),
        (["--time", "5"], "--time 5: must be more than signal_lead_s=300"),
        (["--time", "1h"], "--time '1h': must be text in Slurm's form"),
        (["--task", "prepare"], "data.prepare is missing"),
        (["--task", "evaluate"], "not the folder of a run"),
        (["--task", "evaluate", "--nodes", "2"], "--task evaluate takes a run's folder and one node"),
        (["--task", "prepare", "--allow-change", "train"], "--allow-change has no meaning with --task prepare"),
        (["--allow-change", "train.stepz"], "--allow-change train.stepz: not a field"),
        (["--set", "run.dir=/tmp/a b"], "a job's files must lie at a path of letters"),
    ],
)  # fmt: skip
def test_a_bad_config_is_told_before_anything_is_submitted(
    words: list[str],
    told: str,
    config_file: Path,
    cluster_file: str,
    slurm: FakeSlurm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["submit", str(config_file), "--cluster", cluster_file, *words]) == 2
    assert told in capsys.readouterr().err
    assert not slurm.calls and not Path("run").exists()


def test_a_bad_config_is_told_without_torch(config_file: Path, cluster_file: str, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom launch.cli import main\n"
        f"code = main(['submit', {str(config_file)!r}, '--cluster', 'cpus.yaml', '--set', 'layout.dp=3'])\n"
        "assert code == 2, code\nassert not {'torch', 'deepspeed', 'ray'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_slurm_the_other_ways_are_named(
    config_file: Path, cluster_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 2
    err = capsys.readouterr().err
    assert "sbatch is not on the PATH" in err and "--dry-run" in err and "pretrain train" in err
    assert main(["submit", str(config_file), "--cluster", cluster_file, "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("message", "code", "told"),
    [
        ("sbatch: error: invalid partition specified: main", 2, "sbatch refused: sbatch: error: invalid partition"),
        ("sbatch: error: Unable to contact slurm controller (connect failure)", 70, "sbatch cannot reach Slurm"),
    ],
)
def test_what_sbatch_refuses_is_told_in_its_words(
    message: str, code: int, told: str, config_file: Path, cluster_file: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    slurm.refuse(message)
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == code
    assert told in capsys.readouterr().err
    assert read_json_lines(Path("run") / JOBS_NAME) == []


def test_a_run_whose_job_is_in_the_queue_gets_no_second_one(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["submit", str(config_file), "--cluster", cluster_file]
    assert main(command) == 0
    slurm.queue("99|99|RUNNING|1|None", "101|101|PENDING|1|Priority")
    assert main(command) == 2
    assert "job 101 of this run is in the queue already (PENDING)" in capsys.readouterr().err
    slurm.queue("99|99|RUNNING|1|None")
    assert main(command) == 0
    assert [row["job"] for row in read_json_lines(Path("run") / JOBS_NAME)] == [101, 102]


def test_a_chain_is_so_many_jobs_of_one_name(config_file: Path, cluster_file: str, slurm: FakeSlurm) -> None:
    chained(cluster_file)
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 0
    rows = read_json_lines(Path("run") / JOBS_NAME)
    assert [row["job"] for row in rows] == [101, 102, 103]
    (name,) = {row["chain"] for row in rows}
    for argv, given in slurm.calls:
        assert {f"--job-name={name}", "--dependency=singleton", "--no-requeue"} <= set(argv)
        assert given["PRETRAIN_CHAIN"] == name
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 0
    assert read_json_lines(Path("run") / JOBS_NAME)[-1]["chain"] != name, "an ended chain must not end the next"


def test_an_array_is_submitted_once(config_file: Path, cluster_file: str, slurm: FakeSlurm) -> None:
    chained(cluster_file, "array")
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 0
    ((argv, _),) = slurm.calls
    (row,) = read_json_lines(Path("run") / JOBS_NAME)
    assert row["log"].endswith("slurm-101_1.out")
    assert "--array=1-3%1" in argv and not any(word.startswith("--dependency") for word in argv)


def test_a_chain_that_breaks_off_names_the_jobs_that_wait(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    chained(cluster_file)
    slurm.refuse("sbatch: error: Job violates accounting/QOS policy", call=3)
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 2
    assert "in the queue already: jobs 101, 102" in capsys.readouterr().err
    assert [row["job"] for row in read_json_lines(Path("run") / JOBS_NAME)] == [101, 102]


def test_preparation_and_evaluation_are_jobs_too(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, tmp_path: Path
) -> None:
    assert main(["submit", "quickstart", "--cluster", cluster_file, "--task", "prepare", "--nodes", "3"]) == 0
    argv, given = slurm.calls[0]
    run = tmp_path / "runs/quickstart"
    assert argv[-2:] == [str(template("prepare")), str(run / "submitted-prepare.yaml")]
    assert {"--nodes=3", "--job-name=quickstart-prepare"} <= set(argv) and given["PRETRAIN_GPUS_PER_NODE"] == "0"
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(config_file.read_text())
    assert main(["submit", str(tmp_path / "run"), "--cluster", cluster_file, "--task", "evaluate"]) == 0
    assert slurm.calls[1][0][-2:] == [str(template("evaluate")), str(tmp_path / "run")]
    assert [row["kind"] for row in read_json_lines(tmp_path / "run" / JOBS_NAME)] == ["evaluate"]


def test_what_belongs_to_another_job_stays_out() -> None:
    given = {
        "SLURM_JOB_ID": "1",
        "SLURM_CONF": "/c",
        "PRETRAIN_CHAIN": "x",
        "SBATCH_ACCOUNT": "a",
        "WANDB_API_KEY": "k",
    }
    assert job_environment(given, {"NCCL_DEBUG": "WARN"}) == {
        "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a", "WANDB_API_KEY": "k", "NCCL_DEBUG": "WARN"
    }  # fmt: skip


BOX = ClusterSettings(name="box", gpus_per_node=8, cpus_per_node=64)


@pytest.mark.parametrize(
    ("sets", "nodes", "world"),
    [
        (["layout.dp=4"], None, World(None, 1)),
        (["layout.dp=8", "layout.tp=2"], None, World(None, 2)),
        (["layout.dp=9", "layout.pp=1"], None, World(None, 3)),
        (["layout.dp=4", "layout.tp=2", "layout.pp=1"], 2, World(4, 2)),
        (["layout.tp=2"], 4, World(8, 4)),
        (["layout.tp=16", "layout.pp=1"], None, World(None, 2)),
        ([], None, World(None, 1)),
    ],
)
def test_nodes_follow_from_the_layout_or_are_filled_by_it(sets: list[str], nodes: int | None, world: World) -> None:
    assert world_of(load_config("parity.yaml", sets), BOX, nodes) == world


def test_a_run_that_goes_on_takes_the_nodes_that_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("parity.yaml", [f"run.dir={tmp_path}"])
    stored = load_config("parity.yaml", [f"run.dir={tmp_path}", "layout.dp=8", "layout.pp=2"])
    monkeypatch.setattr("launch.submit.latest_checkpoint", lambda _: "one")
    monkeypatch.setattr("launch.submit.read_resolved", lambda _: stored)
    assert world_of(config, BOX, None) == World(None, 2)
    with pytest.raises(ConfigError, match="--nodes 3"):
        world_of(load_config("parity.yaml", ["layout.tp=5", "layout.pp=1"]), BOX, 3)


def test_fuzzed_values_of_the_command_line_reach_sbatch_as_words_or_not_at_all(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, canary = random.Random(11), tmp_path / "canary"
    text, handed_in = config_file.read_text(), 0
    for index in range(150):
        value = nasty(draw, canary)
        odd = tmp_path / f"odd {index} $(touch canary) '.yaml"
        odd.write_text(text)
        words = [
            ["--set", f"name={value}"],
            ["--set", f"run.dir={tmp_path}/{value}"],
            ["--set", f"samples.prompts=[{json.dumps(value)}]"],
            ["--set", value],
            ["--time", value],
            ["--nodes", value],
            ["--after", value],
            ["--allow-change", value],
            ["--cluster", value],
            [],
        ][index % 10]
        name = odd if not words else config_file
        code = main(["submit", str(name), "--cluster", cluster_file, *words])
        assert code in (0, 2), capsys.readouterr().err
        err = capsys.readouterr().err
        assert "Traceback" not in err and (code == 0 or err.startswith("error: "))
        handed_in += code == 0
        odd.unlink()
    assert len(slurm.calls) == handed_in > 20
    expected = options_of_plain_job(tmp_path, cluster_file)
    for argv, given in slurm.calls:
        script = argv.index(str(template("train")))
        assert [word.partition("=")[0] for word in argv[1:script]] == expected
        assert all("\n" not in word and "canary" not in word for word in argv)
        assert {name for name in given if name.startswith("PRETRAIN_")} == set(_plain_variables(tmp_path, cluster_file))
    assert not canary.exists() and not list(Path.cwd().glob("canary*"))


def options_of_plain_job(tmp_path: Path, cluster_file: str) -> list[str]:
    from tests.launch.slurm_jobs import job_on

    return [word.partition("=")[0] for word in options(job_on(load_cluster(cluster_file), ranks=1))]


def _plain_variables(tmp_path: Path, cluster_file: str) -> dict[str, str]:
    from tests.launch.slurm_jobs import job_on

    return environment(job_on(load_cluster(cluster_file), ranks=1))


def test_a_node_gets_no_more_ranks_than_it_takes(
    config_file: Path, cluster_file: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four cores would have room for two stages of both data ranks; a node of this cluster takes two."""
    words = ["--set", "layout.dp=2", "--set", "layout.pp=auto", "--set", "layout.zero_stage=1"]
    assert main(["submit", str(config_file), "--cluster", cluster_file, *words]) == 0
    assert "1 node(s) x 2 ranks" in capsys.readouterr().out
    assert slurm.calls[0][1]["PRETRAIN_RANKS_PER_NODE"] == "2"


def test_a_run_that_is_done_is_not_queued(
    config_file: Path,
    cluster_file: str,
    slurm: FakeSlurm,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("launch.submit.latest_checkpoint", lambda run: CheckpointRef.at(run, 100, 1))
    assert main(["submit", str(config_file), "--cluster", cluster_file, "--set", "layout.dp=2"]) == 2
    assert "already at step 100 of train.steps=100" in capsys.readouterr().err and not slurm.calls


def test_a_jobs_file_with_a_strange_row_is_no_obstacle(config_file: Path, cluster_file: str, slurm: FakeSlurm) -> None:
    append_json_line(Path("run") / JOBS_NAME, {"job": "x"})
    assert main(["submit", str(config_file), "--cluster", cluster_file]) == 0
