"""The shard agent as an actor of a Ray cluster (here, for the one Ray of the test process is in this folder)."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from data_prep.ray_tasks import RayTasks
from launch.shard_agent import localized, shard_agent
from pretrain.config import read_resolved
from pretrain.data.token_shards import TokenShards
from tests.data.folders import text_documents, write_folder
from tests.faults.runs import make_run


def test_an_actor_brings_the_shards_also_after_its_death(
    ray_tasks: RayTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    manifest = write_folder(tmp_path / "data", text_documents(24, 1), text_documents(3, 2), shard_documents=4)
    np.ones(manifest.vocab_size, "<u2").tofile(tmp_path / "data" / "token_bytes.bin")
    cache = {"dir": str(tmp_path / "cache"), "agent": "ray", "lookahead_steps": 1}
    run_dir = make_run(tmp_path / "run", tmp_path / "data", data={"cache": cache})
    with localized(read_resolved(run_dir)) as (config, address), shard_agent(config, address):
        whole = TokenShards.open(tmp_path / "data", "train")
        cached = TokenShards.open(config.data.folder, "train")
        np.testing.assert_array_equal(cached.read(0, 20), whole.read(0, 20))
        for path in config.data.folder.glob("train/*.tokens"):
            path.unlink()
        os.kill(_actor_pid(), signal.SIGKILL)
        cached = TokenShards.open(config.data.folder, "train")
        last = whole.num_tokens
        np.testing.assert_array_equal(cached.read(last - 20, last), whole.read(last - 20, last))
    assert "started again" in capfd.readouterr().err


def _actor_pid() -> int:
    """Of the process that Ray runs the agent in."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and b"ray::Server" in (entry / "cmdline").read_bytes():
                return int(entry.name)
        time.sleep(0.1)
    raise AssertionError("no actor was found")
