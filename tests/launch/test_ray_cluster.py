"""Ray inside a Slurm job: command lines, folders, what is told before, and a driver that is told to stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.ray_cluster import PORT_SLOT, last_words, main, ray_command, ray_environment, ray_folder
from launch.slurm_job import port_of
from pretrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
HEAD = "10.0.0.1:20002"


@pytest.fixture
def in_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for name in ("SLURM_RESTART_COUNT", "PRETRAIN_REQUEUE", "PRETRAIN_MAX_FAULTS", "PRETRAIN_RUN_DIR"):
        monkeypatch.delenv(name, raising=False)


def to_prepare(config_file: Path) -> list[str]:
    """The config with something to prepare."""
    corpus = {"data.prepare": "{corpus: {source: text, paths: [/etc]}}", "data.dir": str(config_file.parent / "new")}
    return [str(config_file), *(word for field, value in corpus.items() for word in ("--set", f"{field}={value}"))]


def test_nodes_of_a_cluster_have_their_own_address_and_no_secret_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "s3cret")
    head = ray_command("head", HEAD, "10.0.0.1", "n1", 4, Path("/tmp/ray7/r"))
    worker = ray_command("worker", HEAD, "10.0.0.2", "n2", 4, Path("/tmp/ray7/r"))
    assert {"--head", "--port=20002", "--include-dashboard=false", "--node-ip-address=10.0.0.1"} <= set(head)
    assert {f"--address={HEAD}", "--node-ip-address=10.0.0.2", "--node-name=n2"} <= set(worker)
    assert "--block" in head and "--block" in worker
    assert "s3cret" not in " ".join(head + worker)


def test_a_cluster_without_a_token_is_not_started() -> None:
    with pytest.raises(ConfigError, match="RAY_AUTH_TOKEN is not set"):
        ray_environment({"RAY_AUTH_TOKEN": ""})
    found = ray_environment({"RAY_AUTH_TOKEN": "s3cret", "RAY_ADDRESS": "elsewhere:1", "RAY_AUTH_MODE": "disabled"})
    assert found["RAY_AUTH_MODE"] == "token" and found["RAY_USAGE_STATS_ENABLED"] == "0" and "RAY_ADDRESS" not in found


def test_a_scratch_too_deep_for_sockets_is_refused() -> None:
    assert ray_folder(None, 12345678) == Path("/tmp/ray12345678")
    longest = "/" + 28 * "s"
    ray_folder(longest, 12345678)
    with pytest.raises(ConfigError, match=r"^PRETRAIN_SCRATCH=/s+: Ray's sockets .* 1 bytes too long"):
        ray_folder(longest + "s", 12345678)


def test_what_needs_no_cluster_to_be_told_is_told_before_there_is_one(
    in_a_job: None, config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRETRAIN_INTERFACE", "lo")
    given = to_prepare(config_file)
    assert main(["begin", "--", *given]) == 0
    assert capsys.readouterr().out == f"127.0.0.1:{port_of(7, 0, PORT_SLOT)}\n"
    assert main(["begin", "--", *given, "--set", "data.sequence_lenght=3"]) == 2
    assert main(["begin", "--", *given, "--set", f"data.dir={config_file.parent}"]) == 3
    monkeypatch.setenv("PRETRAIN_SCRATCH", "/" + 90 * "s")
    assert main(["begin", "--", *given]) == 2
    assert capsys.readouterr().out == ""


def test_of_what_ray_said_the_errors_are_told() -> None:
    assert last_words("fine\n\n12:00 ERR it broke\nfine\n") == ["12:00 ERR it broke"]
    assert last_words("one\ntwo\n\n") == ["one", "two"]


def test_a_driver_that_is_told_to_stop_ends_as_preempted(config_file: Path) -> None:
    """While it waits for nodes that never come; started deaf to the signal, as in a job."""
    own = [sys.executable, "-m", "launch.ray_cluster", "prepare", "--address", "127.0.0.1:9", "--nodes", "n1", "--"]
    deaf = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        driver = subprocess.Popen([*own, *to_prepare(config_file)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGUSR1, deaf)
    with driver:
        end = time.monotonic() + 60
        while driver.poll() is None and time.monotonic() < end:
            os.kill(driver.pid, signal.SIGUSR1)
            time.sleep(0.2)
        assert driver.wait(timeout=10) == 75
        assert driver.stderr is not None
        assert driver.stderr.read().startswith("error: told to stop; finished tasks are kept")
