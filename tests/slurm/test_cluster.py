"""The simulated machines: real enough to test on, and gone afterwards."""

import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from tests.slurm.cluster import CONFIG, NODES, ROOT, Cluster, ClusterFailed, missing

LIVE = """
import sys, time
from tests.slurm.cluster import Cluster
with Cluster():
    print("up", flush=True)
    time.sleep(600)
"""
TRAPS = """#!/bin/bash
trap 'echo asked at $SLURM_RESTART_COUNT; exit 0' USR1
echo started
while :; do sleep 0.1; done
"""

pytestmark = pytest.mark.slurm


def marked(mark: str) -> list[str]:
    """The processes that were started under an environment with a mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def traces() -> dict[str, str]:
    """What else a cluster could leave: mounts, links, named namespaces, cgroups, files."""

    def said(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    watched = (
        "/run/slurm",
        "/run/scratch",
        "/run/netns/bridge",
        "/run/machine-tmp",
        "/tmp/ray",
        "/etc/slurm/slurm.conf",
    )
    return {
        "mounts": Path("/proc/self/mountinfo").read_text(),
        "links": said("ip", "-brief", "link"),
        "namespaces": said("ip", "netns", "list"),
        "cgroups": str(sorted(Path("/sys/fs/cgroup").glob("*/*slurm*"))),
        "files": str([path for path in watched if Path(path).exists()]),
        "hosts": Path("/etc/hosts").read_text(),
    }


def gone(mark: str, timeout: float = 10) -> list[str]:
    """The marked processes that are left after a bounded wait."""
    end = time.monotonic() + timeout
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.05)
    return marked(mark)


def test_root_has_all_that_a_cluster_needs() -> None:
    """As root no test here may be skipped; `make test` installs what is missing."""
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    assert missing() == []


def test_a_node_has_its_own_name_memory_tmp_and_scratch(cluster: Cluster, tmp_path: Path) -> None:
    for folder in ("/dev/shm", "/tmp/ray", "/run/scratch"):
        cluster.output("n1", ["touch", f"{folder}/mine"])
        assert cluster.run("n2", ["test", "-e", f"{folder}/mine"]).returncode == 1, folder
        assert not Path(folder, "mine").exists()
    (tmp_path / "shared").write_text("seen")
    assert cluster.output("n2", ["cat", str(tmp_path / "shared")]) == "seen"
    assert cluster.output("n3", ["hostname"]).strip() == "n3"


def test_nodes_reach_each_other_by_name_and_nothing_outside(cluster: Cluster) -> None:
    reach = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
    cluster.output("n1", [sys.executable, "-c", reach, "n4", "6818"])
    outside = cluster.run("n1", [sys.executable, "-c", reach, "192.0.2.1", "80"])
    assert "Network is unreachable" in outside.stderr


def test_processes_of_a_node_are_not_seen_on_another(cluster: Cluster) -> None:
    cluster.output("n1", ["bash", "-c", "setsid sleep 4242 > /dev/null 2>&1 &"])
    look = ["bash", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c 'sleep 424[2]'"]
    assert cluster.output("n1", look).strip() == "1"
    assert cluster.run("n2", look).stdout.strip() == "0"


def test_srun_reaches_all_nodes_and_gives_out_gpus(cluster: Cluster) -> None:
    said = cluster.output(
        "ctl", ["srun", "-N4", "--gpus-per-node=2", "bash", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"]
    )
    assert sorted(said.split("\n")[:-1]) == [f"{node} 0,1" for node in NODES]


def test_an_exit_code_and_its_attempts_are_told(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.submit("#!/bin/bash\nexit 7\n", folder=tmp_path)
    assert cluster.wait_for(number, "FAILED", timeout=60).exit_code == 7
    cluster.wait_until(lambda: cluster.history(number) == ["FAILED"], 20, "jobcomp tells")


def test_a_batch_script_is_signalled_when_it_is_preempted(cluster: Cluster, tmp_path: Path) -> None:
    number = cluster.submit(TRAPS, "-N4", "--exclusive", "--signal=B:USR1@30", folder=tmp_path)
    log = tmp_path / f"slurm-{number}.out"
    cluster.wait_until(lambda: log.exists() and "started" in log.read_text(), 60, "the job has started")
    urgent = cluster.submit("#!/bin/bash\n", "-N1", "--partition=urgent", "--output=/dev/null", folder=tmp_path)
    cluster.wait_for(number, "COMPLETED", timeout=60)
    assert "asked" in log.read_text()
    cluster.wait_for(urgent, "COMPLETED", timeout=60)


def test_a_job_of_a_killed_node_runs_on_others_and_a_cut_off_node_comes_back(cluster: Cluster, tmp_path: Path) -> None:
    """Both at once: Slurm takes half a minute to see either."""
    script = '#!/bin/bash\n[ "${SLURM_RESTART_COUNT:-0}" = 1 ] || sleep 600\n'
    number = cluster.submit(script, "-N2", "--exclusive", "--requeue", folder=tmp_path)
    first = cluster.wait_for(number, "RUNNING", timeout=60)
    assert first.nodes == "n[1-2]"
    cluster.kill_node("n1")
    cluster.cut_off("n4")
    second = cluster.wait_for(number, "COMPLETED", timeout=120)
    assert (second.nodes, second.restarts) == ("n[2-3]", 1)
    cluster.wait_until(lambda: cluster.history(number) == ["NODE_FAIL", "COMPLETED"], 20, "jobcomp tells")

    cluster.wait_for_nodes("down*", ["n1", "n4"], timeout=60)
    assert cluster.output("n4", ["hostname"]).strip() == "n4", "its processes go on"
    cluster.reconnect("n4")
    cluster.revive("n1")
    cluster.wait_for_nodes("idle", NODES, timeout=60)


def test_a_drained_node_takes_no_job(cluster: Cluster) -> None:
    cluster.drain("n1")
    assert cluster.output("ctl", ["srun", "-N1", "hostname"]).strip() == "n2"


def test_taking_down_leaves_no_trace(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside another cluster, which it does not disturb; with a job that runs and a node that was killed."""
    mark = f"CLUSTER_MARK={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))
    before = traces()
    with Cluster() as second:
        second.submit("#!/bin/bash\nsleep 600\n", "-N2", "--output=/dev/null", folder=Path("/"))
        second.kill_node("n4")
        assert len(marked(mark)) > 5
    assert marked(mark) == []
    assert traces() == before
    assert cluster.node_states() == dict.fromkeys(NODES, "idle")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
@pytest.mark.parametrize("when", ["starting", "up"])
def test_a_session_that_dies_leaves_no_trace(cluster: Cluster, how: signal.Signals, when: str) -> None:
    mark = f"CLUSTER_MARK={uuid.uuid4()}"
    before = traces()
    env = os.environ | dict([mark.split("=")]) | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", LIVE], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as session:
        if when == "up":
            assert session.stdout is not None
            assert session.stdout.readline() == b"up\n"
        else:
            time.sleep(random.Random(int(how)).uniform(0.2, 1))
        session.send_signal(how)
    assert gone(mark) == []
    assert traces() == before


def test_a_daemon_that_dies_is_named_with_its_console(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"CLUSTER_MARK={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))
    for file in CONFIG.iterdir():
        text = file.read_text() + ("NoSuchOption=1\n" if file.name == "slurm.conf" else "")
        (tmp_path / file.name).write_text(text)
    with pytest.raises(ClusterFailed, match=r"(?s)of (ctl|n\d) died.*NoSuchOption"), Cluster(config=tmp_path):
        pass
    assert marked(mark) == []
