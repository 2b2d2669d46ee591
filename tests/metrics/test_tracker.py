"""The W&B mirror: read back with wandb's own reader, one run across restarts, and no wait or litter when it fails."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from pretrain.metrics import tracker as tracker_module
from pretrain.metrics.settings import LoggingSettings, WandbSettings
from pretrain.metrics.tracker import CompositeTracker, ensure_wandb_id, has_wandb_key, open_tracker, wandb_mode

CONFIG = {"name": "tiny", "layout": {"tp": 2, "pp": 2}, "data": {"max_tokens": 5}, "api_key": "not-for-anyone"}
ROOT = Path(__file__).parents[2]
FACTS = {"seed": 1234, "layout": {"pp": 2, "dp": 1, "tp": 2}}


@pytest.fixture(autouse=True)
def no_wandb_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def open_run(run_dir: Path, attempt: int = 1, mode: str = "auto", told: list[str] | None = None) -> CompositeTracker:
    def complain(message: str) -> None:
        assert told is not None, message
        told.append(message)

    settings = LoggingSettings.model_validate({"wandb": {"mode": mode}})
    wandb_id = ensure_wandb_id(run_dir)
    return open_tracker(run_dir, settings, name="tiny", attempt=attempt, wandb_id=wandb_id, complain=complain)


def offline_runs(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


def inspect(folder: Path) -> list[dict[str, Any]]:
    """The records of an offline run, by wandb's own reader."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(folder)]
    environment = {**os.environ, "WANDB_ERROR_REPORTING": "false"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]


def wandb_processes_of(parent: int) -> list[int]:
    """W&B processes that were started by a process, also after its death; ended ones that nobody waited for do not count."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(") ")[2][0]
            if b"wandb-core" in arguments[0] and str(parent).encode() in arguments and state != "Z":
                found.append(int(folder.name))
    return found


def run_script(script: str, *arguments: str) -> str:
    """Output of a fresh interpreter: after a blow, wandb's module state would reach into the next test."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def wait_until_none(parent: int, within_s: float = 15.0) -> list[int]:
    end = time.monotonic() + within_s
    while (left := wandb_processes_of(parent)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def wait_for_wandb_process(parent: int, within_s: float = 30.0) -> int:
    end = time.monotonic() + within_s
    while not (found := wandb_processes_of(parent)) and time.monotonic() < end:
        time.sleep(0.02)
    return found[0]


def test_an_offline_run_read_back_by_wandb_holds_config_layout_and_metrics(tmp_path: Path) -> None:
    tracker = open_run(tmp_path)
    tracker.start(CONFIG, FACTS)
    for step in range(5):
        tracker.log_step(step, {"train/loss": 5.0 - step, "perf/tokens_per_second": 100.0})
    tracker.log_event("checkpoint", step=4)
    tracker.finish({"final_loss": 1.0})
    (folder,) = offline_runs(tmp_path)
    records = inspect(folder)
    (run,) = [record["run"] for record in records if record["type"] == "run"]
    config = run["config"]["update"]
    assert run["run_id"] == ensure_wandb_id(tmp_path)
    assert (config["layout"], config["data"], config["facts"]) == ({"tp": 2, "pp": 2}, {"max_tokens": 5}, FACTS)
    assert "not-for-anyone" not in json.dumps(records)
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [(item["train/step"], item["train/loss"]) for item in history] == [(0, 5), (1, 4), (2, 3), (3, 2), (4, 1)]
    metrics = [record["metric"] for record in records if record["type"] == "metric"]
    assert any(metric.get("glob_name") == "*" and metric["step_metric"] == "train/step" for metric in metrics)
    summary: dict[str, Any] = {}
    for record in records:
        summary |= record.get("summary", {}).get("update", {})
    assert (summary["final_loss"], summary["events/checkpoint"]) == (1, 1)
    assert wandb_processes_of(os.getpid()) == []


def test_a_resumed_run_goes_on_under_the_same_id(tmp_path: Path) -> None:
    for attempt in (1, 2):
        tracker = open_run(tmp_path, attempt)
        tracker.start(CONFIG, FACTS)
        tracker.log_step(attempt, {"train/loss": 1.0})
        tracker.finish({})
    ids = [
        record["run"]["run_id"] for folder in offline_runs(tmp_path) for record in inspect(folder) if "run" in record
    ]
    assert ids == [ensure_wandb_id(tmp_path)] * 2


def test_the_id_of_a_checkpoint_serves_where_the_folder_has_none(tmp_path: Path) -> None:
    assert ensure_wandb_id(tmp_path, "abcd1234") == "abcd1234"
    assert ensure_wandb_id(tmp_path, "ffffffff") == "abcd1234"


def test_no_process_is_left_when_the_rank_is_killed(tmp_path: Path) -> None:
    script = f"""
import time
from pathlib import Path
from pretrain.metrics.settings import LoggingSettings
from pretrain.metrics.tracker import open_tracker
tracker = open_tracker(Path({str(tmp_path)!r}), LoggingSettings(), name="t", attempt=1, wandb_id="abcd1234")
tracker.start({{}}, {{}})
tracker.log_step(1, {{"train/loss": 1.0}})
time.sleep(600)
"""
    child = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        wait_for_wandb_process(child.pid)
    finally:
        child.kill()
        child.wait()
    assert wait_until_none(child.pid) == []


BLOW = """
import json, os, signal, sys, time
from pathlib import Path
from pretrain.metrics import tracker as tracker_module
from pretrain.metrics.settings import LoggingSettings
from tests.metrics.test_tracker import wait_for_wandb_process, wandb_processes_of

tracker_module.QUEUE_SIZE, tracker_module.END_OFFLINE_S = 64, 1.0
told = []
tracker = tracker_module.open_tracker(
    Path(sys.argv[1]), LoggingSettings(), name="t", attempt=1, wandb_id="abcd1234", complain=told.append
)
tracker.start({}, {})
os.kill(wait_for_wandb_process(os.getpid()), getattr(signal, sys.argv[2]))
slowest = 0.0
for step in range(2000):
    began = time.thread_time()
    tracker.log_step(step, {"train/loss": 1.0})
    slowest = max(slowest, time.thread_time() - began)
began = time.monotonic()
tracker.finish({})
print(json.dumps([told, slowest, time.monotonic() - began, wandb_processes_of(os.getpid())]))
"""


@pytest.mark.parametrize("blow", ["SIGKILL", "SIGSTOP"])
def test_training_does_not_wait_for_a_wandb_that_died_or_hangs(tmp_path: Path, blow: str) -> None:
    done = run_script(BLOW, str(tmp_path), blow)
    told, slowest_s, finish_s, left = json.loads(done)
    assert (slowest_s < 0.1, finish_s < 12, left) == (True, True, [])
    assert sum("W&B is given up" in message for message in told) == 1
    assert any("did not take" in message for message in told)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2000


def test_a_server_that_refuses_makes_the_run_an_offline_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(tracker_module, "INIT_TIMEOUT_S", 1.0)
    told: list[str] = []
    tracker = open_run(tmp_path, told=told)
    tracker.start(CONFIG, FACTS)
    tracker.log_step(3, {"train/loss": 1.5})
    tracker.finish({})
    (message,) = told
    assert "cannot be reached" in message
    (folder,) = offline_runs(tmp_path)
    assert any(record.get("history", {}).get("item", {}).get("train/loss") == 1.5 for record in inspect(folder))
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"0123456789" * 4 not in kept


def test_a_missing_wandb_is_told_and_metrics_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_module.importlib.util, "find_spec", lambda name: None)
    told: list[str] = []
    tracker = open_run(tmp_path, told=told)
    tracker.start(CONFIG, FACTS)
    tracker.log_step(1, {"train/loss": 1.0})
    tracker.finish({})
    assert "not installed" in told[0]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1
    assert not (tmp_path / "wandb").exists()


def test_auto_is_online_only_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = WandbSettings()
    assert wandb_mode(auto) == "offline"
    (tmp_path / "netrc").write_text("machine elsewhere.example login user password abc\n")
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine wandb.example login user password abc\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example")
    assert wandb_mode(auto) == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert wandb_mode(auto) == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_mode(auto) == "offline"
    assert wandb_mode(WandbSettings(mode="disabled")) == "disabled"


def test_a_disabled_wandb_is_never_imported(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from pretrain.metrics.settings import LoggingSettings, WandbSettings
from pretrain.metrics.tracker import open_tracker
settings = LoggingSettings(wandb=WandbSettings(mode="disabled"))
tracker = open_tracker(Path(sys.argv[1]), settings, name="t", attempt=1, wandb_id="x")
tracker.start({}, {})
tracker.finish({})
print("wandb" in sys.modules)
"""
    assert run_script(script, str(tmp_path)) == "False\n"
