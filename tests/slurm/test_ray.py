"""Data preparation on a Ray cluster of one Slurm job: what it makes, who does the work, and who can reach it.

One job on three nodes serves all claims, for Ray takes long to come up: when its nodes have joined, its driver is stopped, the
cluster is looked at, and the driver goes on. A fourth node meanwhile has a job whose data are wrong.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_prep.pipeline import prepare_data
from pretrain.config import load_config
from tests.data_prep.corpora import output, quiet, write_texts
from tests.slurm.cluster import CONTROLLER, NODES, ROOT, Cluster
from tests.slurm.jobs import Job

pytestmark = pytest.mark.slurm

CONFIG = """
name: small
run: {{dir: {folder}/run}}
model: {{d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128}}
data:
  dir: {folder}/data
  sequence_length: 32
  prepare:
    corpus: {{source: text, paths: [{folder}/texts]}}
    tokenizer: {{vocab_size: 400}}
    validation_fraction: 0.2
    task_bytes: 8000
train: {{steps: 100, global_batch_tokens: 256, micro_batch_sequences: 1, device: cpu, precision: fp32}}
"""
LOOK = """
import json, os
from pathlib import Path

mine, commands, listening, sockets = {}, [], [], {}
for folder in Path("/proc").glob("[0-9]*"):
    try:
        command, environment = ((folder / name).read_bytes().decode(errors="replace") for name in ("cmdline", "environ"))
        handles = [os.readlink(handle) for handle in (folder / "fd").iterdir()]
        name = (folder / "comm").read_text().strip()
    except OSError:
        continue
    commands.append(command.replace("\\0", " "))
    token = dict(word.split("=", 1) for word in environment.split("\\0") if "=" in word).get("RAY_AUTH_TOKEN")
    if token and name not in ("srun", "slurmstepd"):
        mine[token] = mine.get(token, []) + [name]
        sockets |= {handle: name for handle in handles if handle.startswith("socket:")}
for table in ("tcp", "tcp6"):
    for line in Path("/proc/net", table).read_text().splitlines()[1:]:
        words = line.split()
        name = sockets.get(f"socket:[{words[9]}]")
        if words[3] == "0A" and name:
            number = bytes.fromhex(words[1].split(":")[0])[-4:]  # an IPv4 address in one of IPv6 stands at its end
            listening.append([name, ".".join(str(byte) for byte in reversed(number))])
print(json.dumps({"processes": mine, "commands": commands, "listening": listening}))
"""
"""Which processes of a node have a token of Ray in their environment, all command lines, and what of the former listens where."""


@dataclass(frozen=True)
class Story:
    """What was seen."""

    nodes: dict[str, dict]
    """By node, while the cluster was up: what LOOK writes."""
    token: str
    stranger: str
    """What was said to a client without the token, on another node."""
    friend: str
    """The same of one with it."""
    folder: Path
    log: str
    job: Job
    wrong: Job
    wrong_log: str


def _sbatch(cluster: Cluster, folder: Path, nodes: str, *arguments: str) -> int:
    options = ["--parsable", f"--nodelist={nodes}", f"--nodes={nodes.count(',') + 1}", "--output=slurm-%j.out"]
    script = [str(ROOT / "slurm" / "prepare.sbatch"), str(folder / "small.yaml"), *arguments]
    return int(cluster.output(CONTROLLER, ["sbatch", *options, *script], cwd=folder))


def _log(folder: Path, number: int) -> str:
    file = folder / f"slurm-{number}.out"
    return file.read_text(errors="replace") if file.exists() else ""


@pytest.fixture(scope="module")
def story(_session_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    cluster, folder = _session_cluster, tmp_path_factory.mktemp("ray")
    cluster.heal()
    cluster.wait_for_nodes("idle", NODES, timeout=60)
    write_texts(folder / "texts", 24)
    (folder / "small.yaml").write_text(CONFIG.format(folder=folder))
    (folder / "strange").mkdir()
    (folder / "strange" / "file").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("PRETRAIN_PYTHON", sys.executable)
        yield _tell(cluster, folder)


def _tell(cluster: Cluster, folder: Path) -> Story:
    number = _sbatch(cluster, folder, "n1,n2,n3")
    wrong = _sbatch(cluster, folder, "n4", "--set", f"data.dir={folder}/strange")
    ended_wrong = cluster.wait_for(wrong, "FAILED", "COMPLETED", timeout=200)
    cluster.wait_until(
        lambda: "nodes have joined" in _log(folder, number), 300, "Ray is up", lambda: _log(folder, number)
    )
    signal_driver(cluster, "STOP")
    nodes = {node: json.loads(cluster.output(node, [sys.executable, "-c", LOOK])) for node in ("n1", "n2", "n3")}
    (token,) = nodes["n1"]["processes"]
    address = re.findall(r" --address (\S+) --nodes", "\n".join(nodes["n1"]["commands"]))[0]

    def client(environment: dict[str, str], name: str) -> str:
        """`pretrain prepare` by address on another node; its exit code is the last word."""
        config = [
            str(folder / "small.yaml"),
            "--set",
            f"data.dir={folder}/{name}",
            "--address",
            address,
            "--workers",
            "2",
        ]
        argv = [sys.executable, "-m", "launch", "prepare", *config]
        done = cluster.run("n2", argv, env=environment, cwd=folder, timeout=300)
        return f"{done.stdout}{done.stderr}{done.returncode}"

    stranger = client({}, "without")
    friend = client({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, "by-address")
    signal_driver(cluster, "CONT")
    job = cluster.wait_for(number, "COMPLETED", "FAILED", timeout=300)
    logs = _log(folder, number), _log(folder, wrong)
    return Story(nodes, token, stranger, friend, folder, logs[0], job, ended_wrong, logs[1])


def signal_driver(cluster: Cluster, name: str) -> None:
    """The process that runs `pretrain prepare`, by its command line."""
    cluster.output("n1", ["pkill", f"-{name}", "-f", "^[^ ]*python[^ ]* -m launch.ray_cluster prepare"])


def test_three_nodes_make_the_bytes_that_one_process_makes(story: Story) -> None:
    assert (story.job.state, story.job.exit_code, story.job.restarts) == ("COMPLETED", 0, 0), story.log
    config = load_config(str(story.folder / "small.yaml"), [f"data.dir={story.folder}/local"])
    prepare_data(config.data, "local", 1, quiet())
    assert output(story.folder / "data") == output(story.folder / "local")


def test_several_nodes_did_the_work(story: Story) -> None:
    assert re.search(r"ray, 6 workers on [23] nodes", story.log), story.log


def test_nothing_listens_on_other_than_the_nodes_own_address(story: Story) -> None:
    for number, node in enumerate(("n1", "n2", "n3"), 1):
        found = story.nodes[node]["listening"]
        assert {"raylet"} <= {name for name, _ in found}
        assert {address for _, address in found} <= {f"10.77.0.{number}", "127.0.0.1"}, found
    assert "gcs_server" in {name for name, _ in story.nodes["n1"]["listening"]}


def test_the_token_is_of_this_job_and_on_no_command_line_and_in_no_log(story: Story) -> None:
    assert len(story.token) == 64
    assert [list(seen["processes"]) for seen in story.nodes.values()] == 3 * [[story.token]]
    commands = [command for seen in story.nodes.values() for command in seen["commands"]]
    assert any("ray.scripts.scripts start" in command for command in commands)
    assert not [command for command in commands if story.token in command]
    assert story.token not in story.log


def test_a_client_without_the_token_is_refused(story: Story) -> None:
    assert "asks for another token; set RAY_AUTH_MODE=token" in story.stranger
    assert story.stranger.endswith("2")
    assert not list((story.folder / "without").glob("*.json"))


def test_a_client_with_the_token_prepares_by_address_from_another_node(story: Story) -> None:
    assert story.friend.endswith("0"), story.friend
    assert output(story.folder / "by-address") == output(story.folder / "data")


def test_wrong_data_end_the_job_with_their_code_and_no_second_start(story: Story) -> None:
    assert (story.wrong.state, story.wrong.exit_code, story.wrong.restarts) == ("FAILED", 3, 0), story.wrong_log
    assert "data.dir is not empty" in story.wrong_log
    assert "Ray" not in story.wrong_log, "no cluster was started"
