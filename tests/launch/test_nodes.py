"""Several launchers, as on several machines; here they meet on 127.0.0.1 and 127.0.0.2."""

import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from launch.agreement import code_hash, disagreement, facts_of
from launch.nodes import Nodes, bind, parse_endpoint, reach
from pretrain.config import load_config
from pretrain.errors import ConfigError, RankFault
from pretrain.files import read_json_lines
from tests.launch.driver import Launcher, free_port, is_alive, is_listening, listeners, wait_until

HOST = socket.gethostname()

Start = Callable[..., Launcher]


@pytest.fixture
def two() -> Nodes:
    """Two nodes whose numbers are left to their arrival."""
    return Nodes(2, None, f"127.0.0.2:{free_port()}", lost_s=2.0)


def test_two_nodes_make_one_world_and_number_the_launch_alike(start: Start, tmp_path: Path, two: Nodes) -> None:
    first = start("loop", nodes=two)
    wait_until(lambda: is_listening(str(two.endpoint)))
    second = start("loop", nodes=two)
    second.first_rank = 2
    pids = first.wait_for_ranks() + second.wait_for_ranks()
    port = parse_endpoint(str(two.endpoint))[1]
    assert [place for place in listeners() if place[1] == port] == [("127.0.0.2", port)], "on that address alone"
    for launcher in (first, second):
        launcher.send(signal.SIGTERM)
    told = [launcher.end() for launcher in (first, second)]
    assert [code for code, _ in told] == [75, 75]
    assert not any(map(is_alive, pids))
    assert [row["hosts"] for row in read_json_lines(tmp_path / "run/attempts.jsonl")] == [[HOST, HOST]]
    logs = sorted(path.name for path in (tmp_path / "run/logs/gen-1").glob("*.log"))
    assert logs == ["rank-1.log", "rank-2.log", "rank-3.log"]


def test_both_nodes_name_a_culprit_on_the_second_restart_together_and_end_alike(
    start: Start, tmp_path: Path, two: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VICTIM", "3")
    nodes = [start("kill-until:9", nodes=replace(two, rank=rank), max_restarts=1) for rank in (1, 0)]
    (code, told), (other_code, other_told) = (node.end() for node in nodes)
    assert (code, other_code) == (70, 70)
    assert told == other_told
    assert told.startswith(f"restart 1 of 1: rank 3 on {HOST} was killed by SIGKILL")
    assert f"error: rank 3 on {HOST} was killed by SIGKILL" in told
    assert len(read_json_lines(tmp_path / "run/attempts.jsonl")) == 2
    ended = read_json_lines(tmp_path / "run/events.jsonl")[-1]
    assert (ended["kind"], ended["exit_code"], ended["rank"], ended["node"]) == ("launch_ended", 70, 3, HOST)


def test_a_node_that_is_silent_is_lost_and_ends_its_own_ranks_when_it_comes_back(
    start: Start, tmp_path: Path, two: Nodes
) -> None:
    first, second = (start("loop", nodes=replace(two, rank=rank), max_restarts=3) for rank in (0, 1))
    pids = first.wait_for_ranks() + second.wait_for_ranks()
    second.send(signal.SIGSTOP)
    code, told = first.end()
    assert code == 70 and f"{HOST}: not heard of for 2 s" in told and "cannot be replaced in place" in told
    assert not any(map(is_alive, pids[:2]))
    ended = read_json_lines(tmp_path / "run/events.jsonl")[-1]
    assert (ended["kind"], ended["exit_code"], ended["node"]) == ("launch_ended", 70, HOST)
    second.send(signal.SIGCONT)
    assert second.end()[0] == 70
    assert not any(map(is_alive, pids))


def test_without_node_0_a_node_ends_its_ranks_with_a_fault(start: Start, two: Nodes) -> None:
    first, second = (start("loop", nodes=replace(two, rank=rank)) for rank in (0, 1))
    pids = first.wait_for_ranks() + second.wait_for_ranks()
    first.process.kill()
    code, told = second.end()
    assert code == 70 and f"{HOST}: not heard of" in told
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_number_that_is_taken_and_a_node_too_many_are_refused(start: Start, two: Nodes) -> None:
    first, second = (start("loop", nodes=replace(two, rank=rank)) for rank in (0, 1))
    first.wait_for_ranks()
    again, more = start("loop", nodes=replace(two, rank=1)), start("loop", nodes=two)
    code, told = again.end()
    assert code == 2 and f"--node-rank 1 is taken by {HOST} already" in told
    code, told = more.end()
    assert code == 2 and f"--nnodes 2: 2 nodes have come already, this one ({HOST}) is one too many" in told
    assert first.process.is_alive() and second.process.is_alive()


def test_nodes_with_other_configs_are_refused_before_a_rank_starts(start: Start, tmp_path: Path, two: Nodes) -> None:
    first = start("loop", nodes=replace(two, rank=0))
    second = start("loop", nodes=replace(two, rank=1), overrides=("optimizer.peak_lr=0.5",))
    told = [launcher.end() for launcher in (first, second)]
    assert [code for code, _ in told] == [2, 2] and told[0] == told[1]
    assert f"{HOST}: config section optimizer differs from that on {HOST}" in told[0][1]
    assert not (tmp_path / "run/attempts.jsonl").exists()


def test_a_mistake_on_one_node_ends_all_and_names_it(start: Start, tmp_path: Path, two: Nodes) -> None:
    first = start("loop", nodes=replace(two, rank=0))
    second = start("loop", nodes=replace(two, rank=1), overrides=(f"data.dir={tmp_path}/nowhere",))
    told = [launcher.end() for launcher in (first, second)]
    assert [code for code, _ in told] == [3, 3] and told[0] == told[1]
    assert f"error: {HOST}: {tmp_path}/nowhere" in told[0][1]


def test_a_node_that_never_comes_is_named(start: Start, two: Nodes) -> None:
    alone = start("loop", nodes=replace(two, rank=0, join_timeout_s=0.5))
    code, told = alone.end()
    assert code == 70 and "1 of 2 nodes (number 1) did not come within 0 s" in told.replace("0.5", "0")


def test_the_code_is_a_fact_and_so_is_each_section_of_the_config(config_file: Path, tmp_path: Path) -> None:
    facts = facts_of(load_config(config_file))
    assert facts["code"] == code_hash() and {"config section data", "python", "the version of torch"} <= facts.keys()
    for package in ("pretrain", "launch", "data_prep"):
        (tmp_path / package).mkdir()
    (tmp_path / "launch/room.py").write_text("one = 1\n")
    before = code_hash(tmp_path)
    (tmp_path / "launch/room.py").write_text("one = 2\n")
    assert code_hash(tmp_path) != before


def test_facts_that_differ_are_told_by_node_also_where_names_are_alike() -> None:
    first = {"code": "a" * 32, "the version of torch": "2.13.0", "config section data": "b" * 32}
    assert disagreement([("n1", first), ("n2", dict(first))]) is None
    other, changed = first | {"the version of torch": "2.11.0"}, first | {"code": "c" * 32}
    told = disagreement([("n1", first), ("n1", other), ("n3", changed)])
    assert told is not None and told.splitlines()[1:] == [
        "n1: the version of torch is 2.11.0, on n1 2.13.0",
        "n3: the code (the packages' .py files) differs from that on n1",
    ]


@pytest.mark.parametrize("text", ["host", "host:", ":1", "host:x", "host:0", "host:70000", "[]:1"])
def test_an_endpoint_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="it must be HOST:PORT"):
        parse_endpoint(text)


def test_a_host_that_is_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_endpoint("[::1]:29500") == ("::1", 29500)
    with pytest.raises((ConfigError, RankFault), match=r"nowhere\.invalid cannot be resolved here"):
        bind("nowhere.invalid:29500", 0)
    with pytest.raises(ConfigError, match="HOST is no address of this machine"):
        bind("192.0.2.1:29500", 0)
    assert bind("192.0.2.1:29500", None) is None, "another machine's"
    for everywhere in ("0.0.0.0", "[::]"):
        with pytest.raises(ConfigError, match="means all addresses of every machine"):
            bind(f"{everywhere}:29500", None)
    endpoint = f"127.0.0.1:{free_port()}"
    with pytest.raises(RankFault, match="nobody listened there"):
        reach(endpoint, 0.1)
    listener = bind(endpoint, 0)
    assert listener is not None and reach(endpoint, 1.0) == "127.0.0.1"
    with pytest.raises(RankFault, match="another program listens there"):
        bind(endpoint, 0)
    listener.close()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("127.0.1.1", 29500))])
    with pytest.raises(ConfigError, match=r"n1 is 127.0.1.1 here, where no other machine reaches it"):
        bind("n1:29500", 0)
