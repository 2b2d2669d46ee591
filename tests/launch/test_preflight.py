"""What a node says of itself, and that it waits for nobody for ever. Nodes that measure each other are in tests/slurm."""

import argparse
import socket
from pathlib import Path

import pytest

from launch import preflight
from launch.preflight import Meeting, facts_of, measure

SMALL = """
model: {d_model: 64, num_layers: 2, num_heads: 4, d_ff: 128}
data: {dir: d, sequence_length: 8}
train: {steps: 10, global_batch_tokens: 64, micro_batch_sequences: 1}
"""


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(preflight, "ARRIVE_S", 0.3)
    monkeypatch.setattr(preflight, "ROUND_S", 0.2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_node_0_names_who_does_not_come(port: int) -> None:
    assert measure(Meeting("127.0.0.1", port, 0, 3), "n1", "gloo") == ((1, 2), ())


def test_without_node_0_a_node_says_so_and_ends(port: int) -> None:
    absent, (measured,) = measure(Meeting("127.0.0.1", port, 1, 2), "n2", "gloo")
    assert (absent, measured.peer, measured.gbit_s) == ((), "127.0.0.1", None)
    assert measured.fault


def test_a_single_node_measures_nothing() -> None:
    assert measure(Meeting("nowhere", 1, 0, 1), "n1", "gloo") == ((), ())


def test_a_node_tells_what_it_has_and_a_config_that_it_refuses(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(SMALL)

    def told(*overrides: str) -> preflight.NodeReport:
        arguments = argparse.Namespace(config=str(config), overrides=list(overrides))
        return facts_of(arguments, [tmp_path / "not" / "yet"], {"SLURMD_NODENAME": "n7"})

    report = told()
    assert report.node == "n7"
    assert report.memory_gib > 0
    assert report.disk_gib[str(tmp_path / "not" / "yet")] > 0
    assert {"code", "python", "torch"} <= report.code.keys()
    assert (report.config_fault, report.measured) == (None, None)
    assert told().config == report.config != told("model.d_ff=256").config
    refused = told("model.d_fff=256")
    assert refused.config is None
    assert "d_fff" in (refused.config_fault or "")
