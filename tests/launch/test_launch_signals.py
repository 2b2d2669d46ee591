"""Signals, as a person or a scheduler sends them to the launcher's process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("driver.py")
PATIENCE_S = 60.0


class Launcher:
    """A launcher process with two ranks."""

    def __init__(self, config_file: Path, run_dir: Path, mode: str):
        self.run_dir = run_dir
        self.process = subprocess.Popen(
            [sys.executable, str(DRIVER), str(config_file), "2"],
            env={**os.environ, "FAKE_RANK": mode},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, name: str) -> str:
        """The text of a file that both... one rank writes, once it is there and not empty."""
        return wait_until(lambda: (self.run_dir / name).exists() and (self.run_dir / name).read_text())

    def wait_for_ranks(self) -> list[int]:
        return [int(self.wait_for(f"rank-{rank}.started")) for rank in (0, 1)]

    def end(self) -> tuple[int, str]:
        _, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, err


def wait_until(holds: Callable[[], object]) -> str:
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if found := holds():
            return str(found)
        time.sleep(0.02)
    raise TimeoutError


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def start(config_file: Path, tmp_path: Path) -> Iterator[Callable[[str], Launcher]]:
    launchers: list[Launcher] = []

    def started(mode: str = "loop") -> Launcher:
        launchers.append(Launcher(config_file, tmp_path / "run", mode))
        return launchers[-1]

    yield started
    for launcher in launchers:
        launcher.process.kill()
        launcher.process.communicate()


@pytest.mark.parametrize(
    ("signum", "code", "words"),
    [
        (signal.SIGINT, 130, "Ctrl-C: finishing the step and saving; press it again to stop now"),
        (signal.SIGTERM, 75, "SIGTERM: finishing the step and saving"),
        (signal.SIGUSR1, 75, "SIGUSR1: finishing the step and saving"),
        (signal.SIGHUP, 75, "SIGHUP: finishing the step and saving"),
    ],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_one_signal_lets_every_rank_finish_its_step_and_save(
    signum: signal.Signals, code: int, words: str, start: Callable[[str], Launcher]
) -> None:
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    launcher.process.send_signal(signum)
    ended, err = launcher.end()
    assert ended == code
    assert words in err and "its checkpoint is saved" in err and "continue: pretrain train AGAIN" in err
    assert "Traceback" not in err
    assert all((launcher.run_dir / f"rank-{rank}.saved").exists() for rank in (0, 1))
    assert not any(map(is_alive, pids))


def test_ctrl_c_of_a_terminal_reaches_the_launcher_alone(start: Callable[[str], Launcher]) -> None:
    """A terminal signals the whole foreground group: the ranks must not be in it, or they would get the signal twice."""
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    assert all(os.getpgid(pid) == pid != os.getpgid(launcher.process.pid) for pid in pids)
    os.killpg(launcher.process.pid, signal.SIGINT)
    assert launcher.end()[0] == 130


def test_ctrl_c_twice_stops_now(start: Callable[[str], Launcher], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PEER", "deaf")
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    launcher.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert launcher.process.poll() is None
    launcher.process.send_signal(signal.SIGINT)
    code, err = launcher.end()
    assert code == 130 and "stopped now by Ctrl-C" in err and "Traceback" not in err
    assert not any(map(is_alive, pids))


def test_a_signal_while_the_ranks_start_is_not_lost(start: Callable[[str], Launcher]) -> None:
    launcher = start("slow-start")
    wait_until(
        lambda: (launcher.run_dir / "rank-0.started").exists() and (launcher.run_dir / "rank-1.started").exists()
    )
    launcher.process.send_signal(signal.SIGINT)
    code, err = launcher.end()
    assert code == 130 and "Traceback" not in err
    assert all((launcher.run_dir / f"rank-{rank}.saved").exists() for rank in (0, 1))


def test_no_rank_outlives_a_killed_launcher(start: Callable[[str], Launcher]) -> None:
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    launcher.process.kill()
    began = time.monotonic()
    wait_until(lambda: not any(map(is_alive, pids)))
    assert time.monotonic() - began < 5


def test_what_a_rank_started_dies_with_a_fault(start: Callable[[str], Launcher]) -> None:
    launcher = start("child")
    pids = launcher.wait_for_ranks()
    group = pids[0]
    os.kill(pids[1], signal.SIGKILL)
    assert launcher.end()[0] == 70
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)


def test_a_second_launcher_of_a_run_is_refused_and_a_killed_one_blocks_nobody(start: Callable[[str], Launcher]) -> None:
    first = start("loop")
    pids = first.wait_for_ranks()
    second = start("loop")
    code, err = second.end()
    assert code == 2
    assert f"this run is being trained by process {first.process.pid} on" in err and "--set name=NEW-NAME" in err
    assert all(map(is_alive, pids))
    first.process.kill()
    first.process.wait()
    third = start("ok")
    assert third.end() == (0, "")
