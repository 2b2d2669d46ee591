"""Options, environment and arguments of a job; the rendered script says the same, and no value says more than itself."""

import os
import random
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from launch.cluster_settings import ClusterSettings, ContainerSettings, load_cluster
from launch.slurm import (
    Job,
    checked_path,
    effective_options,
    environment,
    options,
    place_on,
    render,
    submission,
    template,
)
from pretrain.errors import ConfigError
from tests.launch.slurm_jobs import GOLDEN, NODES, header, job_on, rendered, run_head, without_body

CPUS = ClusterSettings(name="small", gpus_per_node=0, ranks_per_node=4, cpus_per_node=8)
GPUS = ClusterSettings(name="box", gpus_per_node=8, cpus_per_node=96, memory_gib=960, exclusive=False)


def option(job: Job, name: str) -> str | None:
    """The value of an option; None where it is not given."""
    return next((word.partition("=")[2] for word in options(job) if word.startswith(f"--{name}=")), None)


@pytest.mark.parametrize("name", NODES)
def test_a_rendered_script_is_the_golden_one(name: str) -> None:
    assert rendered(name) == (GOLDEN / f"{name}.sbatch").read_text(), "python -m tests.launch.slurm_jobs renews them"


def test_every_shipped_cluster_has_a_golden_script() -> None:
    from pretrain.config_source import shipped_configs

    shipped = {file.stem for file in (shipped_configs() / "clusters").glob("*.yaml")}
    assert shipped == set(NODES) == {file.stem for file in GOLDEN.iterdir()}


def test_golden_scripts_and_templates_are_clean_to_bash_and_shellcheck() -> None:
    scripts = [*GOLDEN.glob("*.sbatch"), *(template(task) for task in ("train", "prepare", "evaluate"))]
    for script in scripts:
        assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0, script
    if shutil.which("shellcheck") is None:
        says = "shellcheck is not installed: as root, `make slurm-tools` installs it"
        pytest.fail(says) if os.geteuid() == 0 else pytest.skip(says)
    done = subprocess.run(["shellcheck", "-x", *map(str, scripts)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("task", ["train", "prepare", "evaluate"])
def test_a_template_is_a_header_of_defaults_and_a_body(task: str) -> None:
    """`render` replaces one block, and nothing in it stays that a cluster could not take back."""
    lines = template(task).read_text().splitlines()  # type: ignore[arg-type]
    header_lines = [index for index, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert lines[0] == "#!/bin/bash"
    assert header_lines == list(range(header_lines[0], header_lines[-1] + 1)), "one block"
    assert all(line.startswith("#") or not line for line in lines[: header_lines[0]])
    assert all(lines[index].startswith("#SBATCH --") and len(lines[index].split()) == 2 for index in header_lines)
    given = options(job_on(CPUS, task))  # type: ignore[arg-type]
    left = {word.partition("=")[0] for word in effective_options("\n".join(lines), given)[len(given) :]}
    assert left <= {"--ntasks", "--signal", "--no-kill"}, left


@pytest.mark.parametrize("name", NODES)
def test_the_rendered_script_is_equal_to_the_submission(name: str, tmp_path: Path) -> None:
    job = job_on(load_cluster(name), nodes=NODES[name])
    script = rendered(name)
    command = submission(job, template("train"))
    assert command[:2] == ["sbatch", "--parsable"]
    split = command.index(str(template("train")))
    own = header(template("train").read_text())
    assert header(script) == effective_options("\n".join(f"#SBATCH {word}" for word in own), command[2:split])
    head = render(job, without_body(template("train").read_text()))
    assert script.startswith(head.rstrip("\n"))
    heard = run_head(head, tmp_path, {"PRETRAIN_CHAIN": "of another job"})
    assert heard.environment == environment(job)
    assert heard.arguments == command[split + 1 :]


def test_given_options_win_over_the_templates_own() -> None:
    text = "#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --requeue\n#SBATCH --exclusive\n#SBATCH --signal=B:USR1@300\n"
    given = ["--nodes=4", "--no-requeue", "--oversubscribe"]
    assert effective_options(text, given) == [*given, "--signal=B:USR1@300"]


def test_a_shared_node_is_asked_for_the_part_that_the_ranks_take() -> None:
    place = place_on(GPUS, nodes=1, ranks=2, on_gpus=True)
    assert (place.cpus, place.gpus, place.memory_gib) == (24, 2, 240)
    whole = place_on(GPUS.model_copy(update={"exclusive": True}), nodes=1, ranks=2, on_gpus=True)
    assert (whole.cpus, whole.gpus, whole.memory_gib) == (96, 8, 960)


def test_a_task_without_gpus_asks_for_none_and_takes_the_partition_of_cpus() -> None:
    cluster = GPUS.model_copy(update={"partition": "gpu", "cpu_partition": "cpu"})
    job = replace(job_on(cluster, "prepare"), place=place_on(cluster, nodes=2, ranks=8, on_gpus=False))
    assert (option(job, "gpus-per-node"), option(job, "partition"), option(job, "nodes")) == (None, "cpu", "2")
    assert option(job_on(cluster), "partition") == "gpu"
    assert option(job, "job-name") == "my-model-prepare" and option(job, "signal") is None


def test_a_job_goes_back_into_the_queue_only_where_the_cluster_says_so() -> None:
    assert "--requeue" in options(job_on(CPUS))
    for policy in ("chain", "never"):
        job = job_on(CPUS.model_copy(update={"requeue": policy}))
        assert "--no-requeue" in options(job) and environment(job)["PRETRAIN_REQUEUE"] == policy


def test_jobs_of_a_chain_have_a_name_that_no_other_chain_has() -> None:
    job = job_on(CPUS.model_copy(update={"requeue": "chain", "chain_length": 3}))
    assert (option(job, "dependency"), option(job, "job-name"), job.submissions) == ("singleton", job.chain, 3)
    assert environment(job)["PRETRAIN_CHAIN"] == job.chain
    others = {replace(job, run_dir=Path("/other")).chain, replace(job, earlier=3).chain, job.chain}
    assert len(others) == 3
    assert replace(job, task="prepare").chain is None


def test_a_chain_may_be_an_array_of_which_one_runs() -> None:
    job = job_on(CPUS.model_copy(update={"requeue": "chain", "chain": "array", "chain_length": 3}))
    assert (option(job, "array"), option(job, "dependency"), job.submissions) == ("1-3%1", None, 1)
    assert option(job, "output") == "/shared/runs/my-model/logs/slurm-%A_%a.out"


def test_a_job_may_wait_for_another_one() -> None:
    assert option(replace(job_on(CPUS), after=12), "dependency") == "afterok:12"
    assert option(replace(job_on(CPUS), after=12), "kill-on-invalid-dep") == "yes"
    chain = job_on(CPUS.model_copy(update={"requeue": "chain"}))
    assert option(replace(chain, after=12), "dependency") == "afterok:12,singleton"


# Values that mean something to a shell, to sbatch or to YAML.
NASTY = (
    *(
        "$(touch CANARY)",
        "`touch CANARY`",
        "; touch CANARY",
        "x\n#SBATCH --partition=evil",
        "x\n\n#SBATCH --wrap=x",
    ),
    *(
        "--wrap=touch CANARY",
        "-J",
        "' ; touch CANARY ; '",
        '" ; touch CANARY ; "',
        "${HOME}",
        "$IFS",
        "a b",
        "\t",
        "%j",
    ),
    *(
        "\\",
        "\r\n",
        "\0",
        "\u2028",
        "\u00e9",
        "\uff04(x)",
        "&& touch CANARY",
        "| tee CANARY",
        "> CANARY",
        "*",
        "?",
        "~root",
    ),
    *("x#SBATCH", "!!", "{a,b}", "<(touch CANARY)", "\x1b[31m", "x\x0b#SBATCH --x", "='", "a=b c=d"),
)


def nasty(draw: random.Random, canary: Path) -> str:
    """One or more of them, at any place of an innocent word."""
    parts = [draw.choice(NASTY).replace("CANARY", str(canary)) for _ in range(draw.randint(1, 3))]
    return "".join(draw.choice(("", "gpu", "/shared/x", "0")) + part for part in parts)


FIELDS = {
    "name": lambda v: {"name": v},
    "gpu_type": lambda v: {"gpu_type": v},
    "partition": lambda v: {"partition": v},
    "cpu_partition": lambda v: {"cpu_partition": v},
    "account": lambda v: {"account": v},
    "qos": lambda v: {"qos": v},
    "time_limit": lambda v: {"time_limit": v},
    "constraint": lambda v: {"constraint": v},
    "reservation": lambda v: {"reservation": v},
    "options": lambda v: {"options": (v,)},
    "the value of an option": lambda v: {"options": (f"--comment={v}",)},
    "interface": lambda v: {"interface": v},
    "scratch": lambda v: {"scratch": v},
    "modules": lambda v: {"modules": (v,)},
    "setup": lambda v: {"setup": v},
    "python": lambda v: {"python": v},
    "an image": lambda v: {"container": ContainerSettings(kind="pyxis", image=v)},
    "mounts": lambda v: {"container": ContainerSettings(kind="pyxis", image="a", mounts=(v,))},
    "the name of a variable": lambda v: {"environment": {v: "1"}},
    "the rest of a variable's name": lambda v: {"environment": {f"NCCL_{v}": "1"}},
    "the value of a variable": lambda v: {"environment": {"NCCL_DEBUG": v}},
}
PER_FIELD = 30


def test_every_text_of_a_cluster_is_fuzzed() -> None:
    """A field that is added needs its row above, or it is none that a text reaches."""
    numbers_and_choices = {
        "gpus_per_node",
        "ranks_per_node",
        "cpus_per_node",
        "memory_gib",
        "exclusive",
        "requeue",
        "chain",
    }
    numbers_and_choices |= {"chain_length", "signal_lead_s", "max_restarts", "max_faults", "preflight"}
    covered = {name for change in FIELDS.values() for name in _changed(change)}
    assert covered == set(ClusterSettings.model_fields) - numbers_and_choices


def _changed(change) -> set[str]:
    try:
        return set(change("/a:/b"))
    except ValidationError:
        return {"container"}


@pytest.mark.parametrize("field", FIELDS)
def test_no_value_of_a_cluster_reaches_a_shell_or_adds_an_option(field: str, tmp_path: Path) -> None:
    """Refused, or a word of its own: the same count of options, the same words in bash, and no canary."""
    draw, canary = random.Random(field), tmp_path / "canary"
    plain = CPUS.model_dump() | {"container": None}
    refused = 0
    for _ in range(PER_FIELD):
        value = nasty(draw, canary)
        try:
            cluster = ClusterSettings(**(plain | FIELDS[field](value)))
        except ValidationError:
            refused += 1
            continue
        passed_through_inert(job_on(cluster), tmp_path)
    assert refused, "the fuzz is not one"
    assert not canary.exists()


def passed_through_inert(job: Job, folder: Path) -> None:
    """Raises AssertionError where a value is more than a value."""
    script = render(job, "#!/bin/bash\n#SBATCH --nodes=1\n#SBATCH --requeue\n")
    assert header(script) == options(job), "each option is one word of one line"
    assert all(word.startswith("--") and "\n" not in word for word in options(job))
    heard = run_head(script, folder, {})
    assert heard.environment == environment(job)
    assert heard.arguments == list(job.arguments)


def test_arguments_and_paths_that_bash_would_read_arrive_as_they_are(tmp_path: Path) -> None:
    """The allow-lists are one wall, quoting is the other: here the first is left out."""
    draw, canary = random.Random(5), tmp_path / "canary"
    for _ in range(100):
        words = tuple(nasty(draw, canary).replace("\0", "0") for _ in range(3))
        job = replace(job_on(CPUS), arguments=words, python=words[0])
        passed_through_inert(job, tmp_path)
    assert not canary.exists()


def test_a_folder_with_a_blank_or_a_pattern_of_slurm_is_refused(tmp_path: Path) -> None:
    draw = random.Random(6)
    for value in ["/runs/a b", "/runs/%j", "/runs/$HOME", "-x", *(nasty(draw, tmp_path / "c") for _ in range(100))]:
        if any(sign in value for sign in " %$`'\"\\\n;&|<>*?(){}!#\t\0") or not value.isascii():
            with pytest.raises(ConfigError, match=r"run\.dir: a job's files must lie at a path of letters"):
                checked_path(Path(value), "run.dir")
