"""Nodes that are not fit are named, with the reason, and no others."""

from dataclasses import replace
from pathlib import Path

import pytest

from launch.node_reports import (
    Floors,
    Measured,
    NodeReport,
    Verdict,
    floors_of,
    judge,
    read_reports,
    table,
    write_report,
)
from launch.preflight import MAX_ROUNDS, partner_of, rounds_of
from pretrain.errors import ConfigError

NODES = ("n1", "n2", "n3", "n4")
FLOORS = Floors(gpus=8, memory_gib=100, disk_gib=10)
FIT = NodeReport(
    "n1",
    gpus=8,
    memory_gib=200,
    disk_gib={"/run": 50, "/scratch": 90},
    code={"code": "aa", "torch": "2.13"},
    config="cc",
)


def reports(speed: dict[str, float] | None = None, nodes: tuple[str, ...] = NODES) -> list[NodeReport]:
    """Fit nodes after the rounds of preflight; a pair is as fast as its slower node."""
    speeds = {node: (speed or {}).get(node, 100) for node in nodes}
    made = []
    for place, node in enumerate(nodes):
        partners = [partner_of(place, number, len(nodes)) for number in range(min(MAX_ROUNDS, rounds_of(len(nodes))))]
        peers = [nodes[partner] for partner in partners if partner is not None]
        measured = tuple(Measured(peer, min(speeds[node], speeds[peer])) for peer in peers)
        made.append(replace(FIT, node=node, measured=measured))
    return made


def changed(node: str, **changes: object) -> list[NodeReport]:
    return [replace(report, **changes) if report.node == node else report for report in reports()]  # type: ignore[arg-type]


def test_nodes_that_are_alike_are_fit() -> None:
    assert judge(reports(), NODES, FLOORS) == Verdict()
    assert judge([replace(FIT, measured=())], ["n1"], FLOORS) == Verdict()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"gpus": 7}, "7 of 8 GPUs"),
        ({"gpu_fault": "GPU 3 multiplies wrongly"}, "GPU 3 multiplies wrongly"),
        ({"memory_gib": 12.5}, "12.5 GiB of memory available, 100 are wanted"),
        ({"disk_gib": {"/run": 50, "/scratch": 0.2}}, "0.2 GiB free in /scratch, 10 are wanted"),
        ({"measured": None}, "did not get to the end of preflight"),
    ],
)
def test_a_node_that_lacks_something_is_named(change: dict[str, object], why: str) -> None:
    assert judge(changed("n3", **change), NODES, FLOORS) == Verdict({"n3": why})


def test_a_node_that_does_not_come_is_named() -> None:
    assert judge(reports()[:3], NODES, FLOORS) == Verdict({"n4": "did not come to preflight"})
    late = changed("n1", absent=(2,))
    assert judge(late, NODES, FLOORS) == Verdict({"n3": "did not come to measure the network with n1"})


def test_without_node_0_it_alone_is_named_though_nobody_could_measure() -> None:
    lost = [replace(report, measured=(Measured("n1", None, "timed out"),)) for report in reports()]
    assert list(judge(lost[1:], NODES, FLOORS).bad) == ["n1"]
    hung = [replace(lost[0], measured=None), *lost[1:]]
    assert list(judge(hung, NODES, FLOORS).bad) == ["n1"]


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_the_slow_node_is_named_and_its_partners_are_not(count: int) -> None:
    nodes = tuple(f"n{number}" for number in range(1, count + 1))
    for slow in nodes:
        verdict = judge(reports({slow: 20}, nodes), nodes, FLOORS)
        assert verdict == Verdict({slow: "20 Gbit/s at best, 33 are wanted"}), slow
    assert judge(reports({"n2": 50}, nodes), nodes, FLOORS) == Verdict()


def test_of_two_nodes_a_floor_alone_judges_and_names_both() -> None:
    pair = reports({"n2": 1}, ("n1", "n2"))
    assert judge(pair, ("n1", "n2"), FLOORS) == Verdict()
    assert set(judge(pair, ("n1", "n2"), replace(FLOORS, gbit_s=10)).bad) == {"n1", "n2"}


def test_who_fails_with_those_that_measured_is_named_and_they_are_not() -> None:
    failed = Measured("", None, "timed out")
    deaf = [
        replace(
            report,
            measured=tuple(
                replace(failed, peer=one.peer) if "n3" in (one.peer, report.node) else one
                for one in report.measured or ()
            ),
        )
        for report in reports()
    ]
    verdict = judge(deaf, NODES, FLOORS)
    assert list(verdict.bad) == ["n3"]
    assert "timed out" in verdict.bad["n3"]


def test_code_or_config_that_differ_stop_the_job() -> None:
    assert judge(changed("n2", config="dd"), NODES, FLOORS) == Verdict(wrong="config is cc, but dd on n2")
    other = judge(changed("n2", code={"code": "aa", "torch": "2.11"}), NODES, FLOORS)
    assert other == Verdict(wrong="torch is 2.13, but 2.11 on n2")
    assert judge(changed("n2", code={"code": "aa"}), NODES, FLOORS).wrong == "torch is 2.13, but missing on n2"
    unread = judge(changed("n2", config=None, config_fault="not a file"), NODES, FLOORS)
    assert unread.wrong is not None
    assert "n2: not a file" in unread.wrong
    refused = [replace(report, config=None, config_fault="train.stepz") for report in reports()]
    assert judge(refused, NODES, FLOORS) == Verdict(wrong="train.stepz")


def test_what_every_node_lacks_is_no_fault_of_the_nodes() -> None:
    verdict = judge([replace(report, gpus=0) for report in reports()], NODES, FLOORS)
    assert verdict.wrong == "no node has what is expected of it; n1: 0 of 8 GPUs"


def test_reports_come_back_as_they_were_written(tmp_path: Path) -> None:
    for report in (made := [*reports(), replace(FIT, node="n5", absent=(2, 3), measured=None)]):
        write_report(tmp_path, report)
    assert read_reports(tmp_path) == made


def test_the_table_has_a_line_a_node_and_shows_those_that_are_not_fit_of_a_large_job() -> None:
    nodes = tuple(f"n{number}" for number in range(100))
    verdict = judge(reports({"n99": 1}, nodes), nodes, FLOORS)
    lines = table(reports({"n99": 1}, nodes), nodes, verdict).splitlines()
    assert lines[0].split() == ["node", "GPUs", "memory", "disk", "Gbit/s"]
    assert any(line.startswith("n99 ") and "33 are wanted" in line for line in lines)
    assert lines[-1] == "and 36 more"


@pytest.mark.parametrize("count", range(2, 12))
def test_each_pair_of_nodes_meets_once(count: int) -> None:
    met = set()
    for number in range(rounds_of(count)):
        for place in range(count):
            partner = partner_of(place, number, count)
            if partner is not None:
                assert partner_of(partner, number, count) == place != partner
                met.add((number, frozenset((place, partner))))
    assert len(met) == len({pair for _, pair in met}) == count * (count - 1) // 2


def test_floors_are_numbers() -> None:
    assert floors_of({"PRETRAIN_GPUS_PER_NODE": "8", "PRETRAIN_MIN_GBIT_S": "2.5"}) == Floors(gpus=8, gbit_s=2.5)
    for text in ("much", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="PRETRAIN_MIN_DISK_GIB"):
            floors_of({"PRETRAIN_MIN_DISK_GIB": text})
