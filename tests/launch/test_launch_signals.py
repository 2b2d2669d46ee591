"""Signals, as a person or a scheduler sends them to the launcher's process."""

import os
import pty
import signal
import time
from collections.abc import Callable

import pytest

from launch.nodes import Nodes
from tests.launch.driver import Launcher, free_port, is_alive, is_listening, wait_until


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
    signum: signal.Signals, code: int, words: str, start: Callable[..., Launcher]
) -> None:
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    launcher.send(signum)
    ended, err = launcher.end()
    assert ended == code
    assert words in err and "its checkpoint is saved" in err and "continue: pretrain train AGAIN" in err
    assert "Traceback" not in err
    assert all((launcher.run_dir / f"rank-{rank}.saved").exists() for rank in (0, 1))
    assert not any(map(is_alive, pids))


def test_ctrl_c_on_a_terminal_reaches_the_launcher_alone(start: Callable[..., Launcher]) -> None:
    """A terminal signals its whole foreground group: ranks in it would get the signal twice."""
    master, slave = pty.openpty()
    launcher = start("loop", terminal=os.ttyname(slave))
    pids = launcher.wait_for_ranks()
    assert all(os.getpgid(pid) == pid for pid in pids)
    os.write(master, b"\x03")
    assert launcher.end()[0] == 130
    os.close(slave)
    os.close(master)


def test_rank_0_keeps_the_terminal(start: Callable[..., Launcher]) -> None:
    master, slave = pty.openpty()
    launcher = start("ok", terminal=os.ttyname(slave))
    assert launcher.end() == (0, "")
    assert b"rank 0 speaks, a terminal: True" in os.read(master, 10_000)
    os.close(slave)
    os.close(master)


def test_ctrl_c_twice_stops_now(start: Callable[..., Launcher], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_PEER", "deaf")
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    launcher.send(signal.SIGINT)
    time.sleep(0.5)
    assert launcher.process.is_alive()
    launcher.send(signal.SIGINT)
    code, err = launcher.end()
    assert code == 130 and "stopped now by Ctrl-C" in err and "Traceback" not in err
    assert not any(map(is_alive, pids))


def test_a_signal_while_the_ranks_start_is_not_lost(start: Callable[..., Launcher]) -> None:
    launcher = start("slow-start")
    wait_until(
        lambda: (launcher.run_dir / "rank-0.started").exists() and (launcher.run_dir / "rank-1.started").exists()
    )
    launcher.send(signal.SIGINT)
    code, err = launcher.end()
    assert code == 130 and "Traceback" not in err
    assert all((launcher.run_dir / f"rank-{rank}.saved").exists() for rank in (0, 1))


def test_no_rank_outlives_a_killed_launcher(start: Callable[..., Launcher]) -> None:
    launcher = start("loop")
    pids = launcher.wait_for_ranks()
    launcher.process.kill()
    began = time.monotonic()
    wait_until(lambda: not any(map(is_alive, pids)))
    assert time.monotonic() - began < 5


def test_what_a_rank_started_dies_with_a_fault(start: Callable[..., Launcher]) -> None:
    launcher = start("child")
    pids = launcher.wait_for_ranks()
    child = int((launcher.run_dir / "child.started").read_text())
    assert is_alive(child)
    os.kill(pids[1], signal.SIGKILL)
    assert launcher.end()[0] == 70
    wait_until(lambda: not is_alive(child))


def test_a_second_launcher_of_a_run_is_refused_and_a_killed_one_blocks_nobody(start: Callable[..., Launcher]) -> None:
    first = start("loop")
    pids = first.wait_for_ranks()
    second = start("loop")
    code, err = second.end()
    assert code == 2
    assert f"this run is being trained by process {first.pid} on" in err and "--set name=NEW-NAME" in err
    assert all(map(is_alive, pids))
    first.process.kill()
    first.process.join()
    third = start("ok")
    assert third.end() == (0, "")


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGTERM], ids=lambda value: value.name)
def test_a_launcher_that_was_started_deaf_to_a_signal_hears_it(
    signum: signal.Signals, start: Callable[..., Launcher]
) -> None:
    launcher = start("loop", deaf_to=signum)
    launcher.wait_for_ranks()
    launcher.send(signum)
    assert launcher.end()[0] == 75


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=str)
def test_a_signal_ends_a_launcher_that_waits_for_other_nodes_at_once(
    signum: signal.Signals, code: int, start: Callable[..., Launcher]
) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    launcher = start("loop", nodes=Nodes(2, 0, endpoint))
    wait_until(lambda: is_listening(endpoint))
    began = time.monotonic()
    launcher.send(signum)
    ended, err = launcher.end()
    assert ended == code and "while no rank ran" in err and "continue: pretrain train AGAIN" in err
    assert time.monotonic() - began < 15
