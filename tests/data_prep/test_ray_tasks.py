"""Tasks of Ray: errors arrive as themselves, a worker that dies is replaced, a head that dies is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from data_prep.ray_tasks import RayTasks, _ray_token, all_nodes
from pretrain.errors import DataError, RankFault
from tests.data_prep.corpora import data_settings, output, run, write_texts

ROOT = Path(__file__).parents[2]


def test_ray_listens_on_this_machine_alone(ray_tasks: RayTasks) -> None:
    found = [
        connection.laddr.ip
        for process in psutil.Process().children(recursive=True)
        if process.is_running() and process.name() in ("gcs_server", "raylet", "ray::RuntimeEnvAgent")
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(found) >= 3 and {address.removeprefix("::ffff:") for address in found} == {"127.0.0.1"}


def test_an_error_in_a_ray_task_arrives_as_itself(ray_tasks: RayTasks) -> None:
    with pytest.raises(DataError, match="from inside"):
        list(ray_tasks.run(_raise, [1]))


def test_a_ray_worker_that_dies_once_is_replaced(ray_tasks: RayTasks, tmp_path: Path) -> None:
    assert list(ray_tasks.run(_die_once, [tmp_path / "mark"])) == [(0, "done")]


def test_a_ray_worker_that_is_killed_from_outside_is_replaced(ray_tasks: RayTasks, tmp_path: Path) -> None:
    tasks = [tmp_path / str(number) for number in range(4)]
    run = ray_tasks.run(_tell_and_wait, tasks)
    results = [next(run)]
    deadline = time.monotonic() + 30
    while not (tasks[-1].exists() and tasks[-1].read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(int(tasks[-1].read_text()), signal.SIGKILL)
    results += run
    assert sorted(results) == [(place, path.name) for place, path in enumerate(tasks)]


def test_a_task_whose_ray_worker_dies_every_time_is_named(ray_tasks: RayTasks) -> None:
    with pytest.raises(RankFault, match="died at poison"):
        list(ray_tasks.run(_die, ["poison"]))


def test_a_node_that_does_not_see_the_folder_is_named(
    ray_tasks: RayTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RayTasks(workers=1) as joined:
        joined.look_at(tmp_path)
        assert not list(tmp_path.iterdir())
        monkeypatch.setattr("data_prep.ray_tasks._sees", _sees_nothing)
        with pytest.raises(DataError, match=r"node \S+ of the Ray cluster does not see this folder"):
            joined.look_at(tmp_path)
    assert list(ray_tasks.run(abs, [-1])) == [(0, 1)], "a cluster that was joined goes on"


def test_nodes_that_do_not_join_are_named_and_a_cluster_that_was_joined_goes_on(ray_tasks: RayTasks) -> None:
    import ray

    here = ray.nodes()[0]["NodeName"]
    told = r"2 of 3 nodes did not join the Ray cluster within 0\.3 s: n8, n9$"
    with pytest.raises(RankFault, match=told), all_nodes("auto", ["n8", here, "n9"], 0.3):
        pass
    with all_nodes("auto", [here], 10):
        pass
    assert list(ray_tasks.run(abs, [-1])) == [(0, 1)]


GIVEN = """
import sys
from pathlib import Path
from data_prep.ray_tasks import RayTasks, _ray_token
from pretrain.errors import ConfigError
from tests.data_prep.corpora import data_settings, quiet
from data_prep.pipeline import prepare_data

try:
    with RayTasks(1, "127.0.0.1:1"):
        pass
except ConfigError as error:
    print(error)
print(prepare_data(data_settings(Path(sys.argv[2]), Path(sys.argv[3])), "ray", None, quiet(), sys.argv[1]).backend)
"""


def test_a_cluster_given_by_its_address_is_used_and_left_as_it_is(ray_tasks: RayTasks, tmp_path: Path) -> None:
    corpus = write_texts(tmp_path / "texts", 12)
    run(data_settings(tmp_path / "local", corpus))
    assert ray_tasks._head is not None
    address = f"{ray_tasks._head[0]}:{ray_tasks._head[1]}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": _ray_token(), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        [sys.executable, "-c", GIVEN, address, tmp_path / "data", corpus],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **token},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("--address 127.0.0.1:1: no Ray cluster can be reached there")
    assert done.stdout.endswith("ray, 2 workers\n")
    assert output(tmp_path / "data") == output(tmp_path / "local")
    assert list(ray_tasks.run(abs, [-1])) == [(0, 1)]


def test_a_wrong_token_is_told_at_once(ray_tasks: RayTasks) -> None:
    assert ray_tasks._head is not None
    address = f"{ray_tasks._head[0]}:{ray_tasks._head[1]}"
    ask = "import sys; from data_prep.ray_tasks import _check_reachable; _check_reachable(sys.argv[1])"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": 32 * "x"}
    done = subprocess.run(
        [sys.executable, "-c", ask, address], env=os.environ | token, cwd=ROOT, capture_output=True, text=True
    )
    assert (
        f"ConfigError: --address {address}: the Ray cluster there asks for another token; set RAY_AUTH_MODE"
        in done.stderr
    )
    assert done.stderr.count("InvalidAuthToken") == 1, "it is not tried again"


def test_a_head_that_does_not_answer_is_told(ray_tasks: RayTasks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.ray_tasks.HEAD_CHECK_S", 0.05)
    monkeypatch.setattr("data_prep.ray_tasks.HEAD_CHECKS", 1)
    monkeypatch.setattr(ray_tasks, "_head", ("127.0.0.1", 9))
    with pytest.raises(RankFault, match=r"the head of the Ray cluster at 127\.0\.0\.1 is gone .*run it again"):
        list(ray_tasks.run(time.sleep, [0.5]))


def _sees_nothing(_: str) -> bool:
    return False


def _raise(_: int) -> None:
    raise DataError("from inside")


def _die(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_once(mark: Path) -> str:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _tell_and_wait(mark: Path) -> str:
    again = mark.exists()
    mark.write_text(str(os.getpid()))
    if mark.name == "3" and not again:
        time.sleep(60)
    return mark.name
