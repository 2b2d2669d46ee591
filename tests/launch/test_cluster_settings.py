"""Cluster files: found by name, strict, extended, and held against allow-lists."""

from pathlib import Path

import pytest

from launch.cluster_settings import VARIABLE, load_cluster, minutes
from pretrain.config_source import shipped_configs
from pretrain.errors import ConfigError

SMALL = "gpus_per_node: 8\ncpus_per_node: 64\n"


def cluster_file(folder: Path, text: str, name: str = "mine.yaml") -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("file", sorted((shipped_configs() / "clusters").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_cluster_is_found_by_name_and_valid(file: Path) -> None:
    assert load_cluster(file.stem) == load_cluster(str(file))
    assert load_cluster(file.stem).name == file.stem


def test_a_projects_own_cluster_goes_before_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cluster_file(tmp_path / "configs/clusters", f"{SMALL}partition: ours\n", "no-requeue.yaml")
    assert load_cluster("no-requeue").partition == "ours"


def test_a_cluster_extends_a_shipped_one_and_keeps_its_own_name(tmp_path: Path) -> None:
    text = "extends: clusters/h100-infiniband-64x8.yaml\naccount: mine\nenvironment: {NCCL_DEBUG: INFO}\n"
    cluster, shipped = load_cluster(cluster_file(tmp_path, text)), load_cluster("h100-infiniband-64x8")
    assert (cluster.name, cluster.account, cluster.partition) == ("mine", "mine", shipped.partition)
    assert cluster.environment == {**shipped.environment, "NCCL_DEBUG": "INFO"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no-requeu", "did you mean no-requeue?"),
        ("zzz", "known are cloud-preemptible, h100-infiniband-64x8, no-requeue, one-box-8gpu"),
        ("nowhere/mine.yaml", "there is no such cluster"),
        ("../one-box-8gpu", "did you mean one-box-8gpu?"),
        ("", "there is no such cluster"),
    ],
)
def test_a_cluster_that_is_not_there_is_told_with_the_nearest(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as told:
        load_cluster(name)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("partitoin: gpu", "line 3: partitoin is not a field of the config; did you mean partition?"),
        ("partition: 'a b'", "line 3: partition must be text of letters, digits and _.@+-; several with commas, or null, not"),
        ("partition: -x", "partition must be text"),
        ("time_limit: tomorrow", "time_limit must be text in Slurm's form: minutes, HH:MM:SS or D-HH:MM:SS"),
        ("time_limit: 5:00", "time_limit=5:00 must be more than signal_lead_s=300"),
        ("exclusive: no", "exclusive must be true or false, not 'no'"),
        ("exclusive: false", "memory_gib is missing: with exclusive=false"),
        ("ranks_per_node: 9", "ranks_per_node=9 must be at most gpus_per_node=8"),
        ("options: [--wrap=x]", "options.0 must be text --NAME=VALUE without blanks or quotes, NAME one of begin"),
        ("options: ['--comment=$(x)']", "options.0 must be text --NAME=VALUE"),
        ("options: ['--uid=0']", "options.0 must be text --NAME=VALUE"),
        ("modules: ['a b']", "modules.0 must be text that is a module's name"),
        ("environment: {LD_PRELOAD: x.so}", "environment: 'LD_PRELOAD' must be a name that starts with one of NCCL_"),
        ("environment: {WANDB_API_KEY: abc}", "never one that holds a secret"),
        ("environment: {NCCL_DEBUG: 'a b'}", "environment.NCCL_DEBUG must be text of letters"),
        ("environment: {NCCL_DEBUG: true}", "environment.NCCL_DEBUG must be"),
        ("container: {kind: docker, image: a}", "container.kind must be one of pyxis, apptainer, not 'docker'"),
        ("preflight: {min_disk_gib: -1}", "preflight.min_disk_gib must be a number from 0"),
        ("requeue: chian", "requeue must be one of requeue, chain, never, not 'chian'; did you mean chain?"),
        ("interface: ib0\nenvironment: {NCCL_SOCKET_IFNAME: ib0}", "interface=ib0 sets GLOO_SOCKET_IFNAME"),
        ("x: !!python/object/apply:os.system [id]", "not readable as YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_the_field_and_what_it_takes(line: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as told:
        load_cluster(cluster_file(tmp_path, f"{SMALL}{line}\n"))
    assert words in str(told.value) and "mine.yaml" in str(told.value)


def test_a_cluster_without_gpus_says_how_many_ranks_it_takes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ranks_per_node is missing: with gpus_per_node=0"):
        load_cluster(cluster_file(tmp_path, "gpus_per_node: 0\ncpus_per_node: 4\n"))


def test_variables_of_libraries_are_allowed_and_those_of_secrets_and_loaders_are_not() -> None:
    allowed = (
        "NCCL_IB_HCA NCCL_NET_PLUGIN UCX_TLS FI_PROVIDER HF_HOME WANDB_MODE OMP_NUM_THREADS CUDA_DEVICE_MAX_CONNECTIONS "
        "TOKENIZERS_PARALLELISM TMPDIR https_proxy"
    )
    refused = (
        "PATH LD_LIBRARY_PATH LD_PRELOAD BASH_ENV ENV IFS PS4 PROMPT_COMMAND BASH_FUNC_srun%% HOME PYTHONPATH PYTHONSTARTUP "
        "SLURM_CONF SBATCH_PARTITION PRETRAIN_PYTHON CUDA_INJECTION64_PATH TORCH_EXTENSIONS_PATH NCCL_ nccl_debug NCCL_A=1 "
        "HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID RAY_AUTH_TOKEN GOOGLE_APPLICATION_CREDENTIALS "
        "HF_HUB_PASSPHRASE RAY_RUNTIME_ENV_HOOK UCX_MODULE_DIR TORCH_EXTENSIONS_DIR WANDB_BASE_URL NCCL_CONF_FILE"
    )
    assert [name for name in allowed.split() if not VARIABLE.allows(name)] == []
    assert [name for name in refused.split() if VARIABLE.allows(name)] == []


def test_times_are_read_as_slurm_reads_them() -> None:
    times = {"30": 30, "10:00": 10, "1:30:00": 90, "2-0": 2880, "1-1:30": 1530, "1-0:0:30": 1440.5}
    assert {text: minutes(text) for text in times} == times
