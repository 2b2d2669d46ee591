"""Where metrics go: metrics.jsonl, and W&B as its mirror. The one file that imports wandb, and only once a tracker starts.

Training never waits for W&B. Every call to it is made on one thread that takes from a bounded queue; what does not fit is
dropped, counted and told once. A server that cannot be reached makes the run an offline one, in the run folder's `wandb/`, to
be sent later by `wandb sync`; a W&B process that hangs or dies is given up on, killed and told. Cost: a process of some 50 MB
beside rank 0, and 0.1 to 0.9 ms a step on that thread. Not taken: `wandb.log(step=...)`, which drops points whose step does
not increase (a resumed run repeats some): points carry `train/step`, and W&B is told to draw against it.

One training run is one W&B run: the id is made once, kept in the run folder and in the checkpoints, and resumed. Offline, a
resumed run writes a further `offline-run-*` folder under the same id.
"""

import contextlib
import importlib.util
import netrc
import os
import queue
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from pretrain.errors import Preempted
from pretrain.files import write_atomically
from pretrain.metrics.facts import redact
from pretrain.metrics.jsonl import JsonlTracker, to_json
from pretrain.metrics.settings import LoggingSettings, WandbSettings

WANDB_ID_FILE = "wandb_id"
QUEUE_SIZE = 4096
"""Calls that may wait for W&B; a minute of steps of 15 ms."""
INIT_TIMEOUT_S = 20.0
"""How long a server may take to answer at the start before the run becomes an offline one."""
INIT_OFFLINE_TIMEOUT_S = 60.0
"""The same for W&B's own local process, on a machine that may be very busy."""
FINISH_TIMEOUT_S = 30.0
"""How long the end of a run waits for an upload; what is left stays on disk for `wandb sync`."""
END_OFFLINE_S = 30.0
"""How long the end of a run waits for W&B's process to write its files and go."""
FAILURES_TO_GIVE_UP = 3
ALERT_EVENTS = frozenset({"skipped_step", "checkpoint_failed", "checkpoint_damaged", "fault"})
"""Kinds of events that W&B is asked to alert about, each at most once in `ALERT_INTERVAL_S`."""
ALERT_INTERVAL_S = 300

_DEFAULT_SERVER = "https://api.wandb.ai"
_FLUSH_INTERVAL_S = 2.0

Complain = Callable[[str], None]


class Tracker(Protocol):
    """What the training loop tells. Rank 0 alone holds one; values are already reduced over ranks."""

    def start(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Once, before the first step: the resolved config and the facts of this attempt."""
        ...

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of one step, by names such as `train/loss`."""
        ...

    def log_event(self, kind: str, **fields: Any) -> None:
        """Something that happened beside the steps: a fault, a restart, a checkpoint, a skipped step."""
        ...

    def finish(self, summary: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """Once, at the end: the summary. Nothing may be logged afterwards."""
        ...


class CompositeTracker:
    """Tells several trackers, in order; with none of them it is the tracker of the ranks that log nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = tuple(trackers)

    def start(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.start(config, facts)

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.log_step(step, values)

    def log_event(self, kind: str, **fields: Any) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.log_event(kind, **fields)

    def finish(self, summary: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """See Tracker."""
        for tracker in self._trackers:
            tracker.finish(summary, exit_code=exit_code)


def open_tracker(
    run_dir: Path,
    settings: LoggingSettings,
    *,
    name: str,
    attempt: int,
    wandb_id: str,
    complain: Complain | None = None,
) -> CompositeTracker:
    """The trackers of rank 0.

    Args:
        name: of the run.
        attempt: number of launches of the run so far, this one included.
        wandb_id: from `ensure_wandb_id`.
        complain: is told, once each, what went wrong with logging; by default standard error.

    Raises:
        StorageError: the run folder cannot be written.
    """
    tell = complain or _print_to_stderr
    trackers: list[Tracker] = [JsonlTracker(run_dir, attempt=attempt, complain=tell)]
    mode = wandb_mode(settings.wandb)
    if mode != "disabled" and importlib.util.find_spec("wandb") is None:
        tell(
            "wandb is not installed: metrics go to metrics.jsonl alone (pip install wandb, or logging.wandb.mode: disabled)"
        )
        mode = "disabled"
    if mode != "disabled":
        trackers.append(WandbTracker(run_dir, settings.wandb, mode=mode, name=name, run_id=wandb_id, complain=tell))
    return CompositeTracker(trackers)


def ensure_wandb_id(run_dir: Path, from_checkpoint: str | None = None) -> str:
    """The W&B id of the run: the one in its folder, else the checkpoint's, else a new one; kept in the folder from then on.

    Raises StorageError where the folder cannot be written.
    """
    path = run_dir / WANDB_ID_FILE
    known = path.read_text().strip() if path.exists() else ""
    if not known:
        known = from_checkpoint or secrets.token_hex(4)
        write_atomically(path, known + "\n")
    return known


def wandb_mode(settings: WandbSettings) -> Literal["offline", "online", "disabled"]:
    """The mode with `auto` resolved: what WANDB_MODE asks for, else online where a key is configured, else offline."""
    if settings.mode != "auto":
        return settings.mode
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return "disabled"
    return "online" if has_wandb_key() else "offline"


def has_wandb_key() -> bool:
    """Whether a key is configured, in WANDB_API_KEY or netrc; the key itself is not kept."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or _DEFAULT_SERVER).netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        try:
            found = netrc.netrc(path.expanduser()).authenticators(host)
        except (OSError, netrc.NetrcParseError, RuntimeError):
            continue
        if found:
            return True
    return False


class WandbTracker:
    """Mirrors a run to W&B from a thread of its own. No method waits, but `finish`, which waits a bounded time."""

    def __init__(
        self,
        run_dir: Path,
        settings: WandbSettings,
        *,
        mode: Literal["offline", "online"],
        name: str,
        run_id: str,
        complain: Complain,
    ) -> None:
        self._run_dir = run_dir.resolve()
        self._settings = settings
        self._mode: Literal["offline", "online"] = mode
        self._name = name
        self._run_id = run_id
        self._complain = complain
        self._calls: queue.Queue[Callable[[Any], None] | None] = queue.Queue(QUEUE_SIZE)
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._config: dict[str, Any] = {}
        self._event_counts: dict[str, int] = {}
        self._exit_code = 0
        self._given_up = threading.Event()
        self.dropped = 0
        """Calls that W&B did not take."""

    def start(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Starts W&B on its thread."""
        self._config = to_json(redact({**config, "facts": facts}))
        self._thread.start()

    def log_step(self, step: int, values: Mapping[str, float]) -> None:
        """Queues a point."""
        point = {"train/step": step, **values}
        self._put(lambda run: run.log(point))

    def log_event(self, kind: str, **fields: Any) -> None:
        """Queues a count in the run's summary, and an alert for the kinds that call for one."""
        told = redact(fields)
        self._event_counts[kind] = count = self._event_counts.get(kind, 0) + 1

        def tell(run: Any) -> None:
            run.summary[f"events/{kind}"] = count
            if kind in ALERT_EVENTS:
                text = ", ".join(f"{key}: {value}" for key, value in told.items())
                run.alert(title=f"{self._name}: {kind}", text=text, level="WARN", wait_duration=ALERT_INTERVAL_S)

        self._put(tell)

    def finish(self, summary: Mapping[str, Any], *, exit_code: int = 0) -> None:
        """Sends what is queued and ends the W&B run, within `END_OFFLINE_S`, and where it uploads `FINISH_TIMEOUT_S` more."""
        if self._thread.ident is None:
            return
        self._exit_code = exit_code
        values = to_json(redact(summary))
        self._put(lambda run: run.summary.update(values))
        end = time.monotonic() + END_OFFLINE_S + (FINISH_TIMEOUT_S if self._mode == "online" else 0)
        with contextlib.suppress(queue.Full):
            self._calls.put(None, timeout=end - time.monotonic())
        self._thread.join(max(0.0, end - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("it does not answer")
            kill_wandb_processes()
            # On a thread, for wandb may hold a lock: without it wandb's exit hook would complain of the dead process.
            ender = threading.Thread(target=_end_service, args=(exit_code,), daemon=True)
            ender.start()
            ender.join(2.0)
        if self.dropped:
            self._complain(f"W&B did not take {self.dropped} points; metrics.jsonl holds them all")

    def _put(self, call: Callable[[Any], None]) -> None:
        try:
            if self._given_up.is_set():
                raise queue.Full
            self._calls.put_nowait(call)
        except queue.Full:
            self.dropped += 1
            if self.dropped == 1 and not self._given_up.is_set():
                self._complain("W&B is slower than training: points are dropped there; metrics.jsonl holds them all")

    def _give_up(self, cause: str) -> None:
        if not self._given_up.is_set():
            self._given_up.set()
            self._complain(f"W&B is given up ({cause}); training goes on, metrics.jsonl holds all metrics")

    def _work(self) -> None:
        """The thread: opens the run, makes the queued calls, closes it. No exception leaves it."""
        try:
            run = self._open()
        except Exception as error:
            self._give_up(_first_line(error))
            return
        failures = 0
        while (call := self._calls.get()) is not None and not self._given_up.is_set():
            try:
                call(run)
                failures = 0
            except Exception as error:
                self.dropped += 1
                failures += 1
                if failures >= FAILURES_TO_GIVE_UP:
                    self._give_up(_first_line(error))
        self._close(run)

    def _open(self) -> Any:
        """The W&B run; an offline one where the server cannot be reached in `INIT_TIMEOUT_S`."""
        try:
            return self._init(self._mode)
        except Exception as error:
            if self._mode == "offline":
                raise
            folder = self._run_dir / "wandb"
            self._complain(
                f"W&B cannot be reached ({_first_line(error)}): this run is logged to {folder}; `wandb sync` later"
            )
            self._mode = "offline"
            _end_service(1)
            return self._init("offline")

    def _init(self, mode: Literal["offline", "online"]) -> Any:
        (self._run_dir / "wandb").mkdir(parents=True, exist_ok=True)
        _prepare_environment(self._run_dir)
        import wandb

        options = _wandb_settings(mode)
        settings = wandb.Settings(
            **{key: value for key, value in options.items() if key in wandb.Settings.model_fields}
        )
        wandb.setup(settings)
        run = wandb.init(
            project=self._settings.project,
            entity=self._settings.entity,
            name=self._name,
            id=self._run_id,
            resume="allow",
            dir=str(self._run_dir),
            config=self._config,
            allow_val_change=True,
            settings=settings,
        )
        run.define_metric("train/step")
        run.define_metric("*", step_metric="train/step")
        return run

    def _close(self, run: Any) -> None:
        """Ends the run and its process."""
        try:
            if not self._given_up.is_set():
                if self._exit_code == Preempted.exit_code:
                    run.mark_preempting()
                run.finish(exit_code=self._exit_code)
        except Exception as error:
            self._give_up(_first_line(error))
        if self._given_up.is_set():
            kill_wandb_processes()
        _end_service(self._exit_code)


def _end_service(exit_code: int) -> None:
    """Ends the process that `wandb.init` started; without it the interpreter's exit would wait for that."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown(exit_code=exit_code)


def kill_wandb_processes() -> None:
    """Kills W&B's processes that this process started, stopped ones too, so that no exit hook waits for them (Linux)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            pid, _, rest = stat.read_text().partition(" (")
            name, _, fields = rest.rpartition(") ")
            if name.startswith("wandb-") and int(fields.split()[1]) == os.getpid():
                os.kill(int(pid), signal.SIGKILL)


def _prepare_environment(run_dir: Path) -> None:
    """What wandb reads from the environment alone: no telemetry of its own, its logs in the run folder, no foreign service."""
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    os.environ.setdefault("WANDB_CACHE_DIR", str(run_dir / "wandb" / "cache"))
    os.environ.pop("WANDB_SERVICE", None)


def _wandb_settings(mode: Literal["offline", "online"]) -> dict[str, Any]:
    """Nothing printed, asked, or gathered beyond what we hand over: no code, no git remote, no machine inventory."""
    return {
        "mode": mode,
        "silent": True,
        "console": "off",
        "save_code": False,
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "x_disable_meta": True,
        "x_disable_machine_info": True,
        "x_save_requirements": False,
        "x_disable_viewer": mode == "offline",
        "x_transaction_log_flush_interval": _FLUSH_INTERVAL_S,
        "init_timeout": INIT_TIMEOUT_S if mode == "online" else INIT_OFFLINE_TIMEOUT_S,
        "finish_timeout": FINISH_TIMEOUT_S,
    }


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _print_to_stderr(message: str) -> None:
    print(f"pretrain: {message}", file=sys.stderr, flush=True)
