"""A run that reads through its node's shard agent trains as one that reads the data where they lie, also when the agent dies."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import pytest

from launch.shard_agent import localized, shard_agent
from launch.torchrun import _check_order
from pretrain.config import read_resolved, write_resolved
from pretrain.data.manifest import read_manifest
from pretrain.errors import ConfigError, DataError
from tests.data.folders import text_documents, write_folder
from tests.faults.runs import losses, make_run, register, train_in_rank
from tests.worlds import World

ERAS = {"method": "eras", "era_tokens": 200}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty shards of training data."""
    folder = tmp_path_factory.mktemp("data")
    manifest = write_folder(folder, text_documents(60, seed=1), text_documents(6, seed=2), shard_documents=3)
    (folder / "token_bytes.bin").write_bytes(b"\0\0" * 3 + b"\2\0" * (manifest.vocab_size - 3))
    return folder


def children() -> list[int]:
    """Process ids of the agents of this process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = (entry / "status").read_text().split("PPid:")[1].split()[0]
            except OSError:
                continue
            if b"launch.shard_agent" in words and int(parent) == os.getpid():
                found.append(int(entry.name))
    return found


def test_a_run_through_an_agent_that_is_killed_trains_as_without_one(
    world: World, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = make_run(tmp_path / "plain", data, data={"order": ERAS})
    assert world.run(train_in_rank, plain, register(plain), -1) == ["finished", "finished"]
    sizes = [path.stat().st_size for path in data.glob("*/*.tokens")]
    cache = {"dir": str(tmp_path / "cache"), "gib": 8 * max(sizes) / 2**30, "lookahead_steps": 2, "agent": "process"}
    run_dir = make_run(tmp_path / "cached", data, data={"order": ERAS, "cache": cache})
    done, killed = Event(), []
    with localized(read_resolved(run_dir)) as (config, address):
        write_resolved(config, run_dir)

        def kill() -> None:
            while not done.wait(0.01):
                if (config.data.folder / ".positions").exists() and (agents := children()):
                    os.kill(agents[0], signal.SIGKILL)
                    killed.append(agents[0])
                    return

        killer = Thread(target=kill)
        killer.start()
        with shard_agent(config, address):
            ends = world.run(train_in_rank, run_dir, register(run_dir), -1)
            done.set()
            killer.join()
    assert ends == ["finished", "finished"]
    assert losses(run_dir) == losses(plain)
    held = list(config.data.folder.glob("train/*.tokens"))
    assert 0 < len(held) <= 8 < len(list(data.glob("train/*.tokens")))
    assert killed and "started again" in capfd.readouterr().err
    deadline = time.monotonic() + 10
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children() and not (config.data.folder / ".agent").exists()


def test_an_address_without_a_cache_or_a_cluster_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run_dir = make_run(tmp_path / "run", data, data={"dir": "s3://bucket/set"})
    with (
        pytest.raises(ConfigError, match=r"read through a cache alone.*data\.cache\.dir"),
        localized(read_resolved(run_dir)),
    ):
        pass
    cache = {"dir": str(tmp_path / "cache"), "agent": "ray"}
    run_dir = make_run(tmp_path / "ray", data, data={"cache": cache})
    told = pytest.raises(DataError, match="RAY_ADDRESS names no cluster")
    with localized(read_resolved(run_dir)) as (config, address), told, shard_agent(config, address):
        pass


@pytest.mark.parametrize(
    ("order", "shards", "told"),
    [
        (ERAS, 0.9, r"does not hold.*validation shards, which stay, and one training shard"),
        ({"method": "shuffle"}, 3, r"every step reads from all.*data\.order\.method=eras"),
    ],
)
def test_a_cache_in_which_a_run_would_crawl_is_refused(
    data: Path, tmp_path: Path, order: dict[str, object], shards: float, told: str
) -> None:
    manifest = read_manifest(data)
    held_out = int(manifest.splits["validation"].column("file_bytes").sum())
    room = held_out + shards * int(manifest.splits["train"].column("file_bytes").max())
    settings = {"order": order, "cache": {"dir": str(tmp_path), "gib": room / 2**30}}
    config = read_resolved(make_run(tmp_path / "run", data, data=settings))
    with pytest.raises(DataError, match=told):
        _check_order(config, manifest)


def test_a_cache_serves_one_run(data: Path, tmp_path: Path) -> None:
    cache = {"dir": str(tmp_path / "cache"), "agent": "process"}
    config = read_resolved(make_run(tmp_path / "one", data, data={"cache": cache}))
    with localized(config) as (here, _):
        for kind, mark in ((".positions", str(os.getpid())), (".failed", "x")):
            (here.data.folder / kind).mkdir()
            (here.data.folder / kind / mark).write_text("7")
        manifest = here.data.folder / "manifest.json"
        before = manifest.stat().st_mtime_ns
        with pytest.raises(ConfigError, match=r"data\.cache\.dir.*name another folder"), localized(config):
            pass
        assert manifest.stat().st_mtime_ns == before
    with localized(config) as (here, address), shard_agent(here, address):
        assert not list(here.data.folder.glob(".positions/*")) and not list(here.data.folder.glob(".failed/*"))
        assert len(children()) == 1
