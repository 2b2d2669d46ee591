"""What a log gets to see where the console is no terminal."""

import io

import pytest
from rich.console import Console

from data_prep.progress import LINE_INTERVAL_S, Phases, duration


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_now_and_then_with_what_is_left_and_one_at_the_end() -> None:
    clock, shown = Clock(), io.StringIO()
    with Phases(Console(file=shown, width=40), clock) as phases, phases.phase("reading", 10_000_000) as progress:
        for _ in range(10):
            clock.now += LINE_INTERVAL_S / 2
            progress.advance(1_000_000, 50)
    lines = shown.getvalue().splitlines()
    assert lines[0] == "reading: 20 %, 100 documents, 0.1 MB/s, 2 min left"
    assert lines[-1] == "reading: 150.0 s, 500 documents, 0.1 MB/s" and len(lines) == 6


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    shown = io.StringIO()
    with (
        Phases(Console(file=shown, width=160, force_terminal=True)) as phases,
        phases.phase("reading", 100) as progress,
    ):
        progress.advance(50, 5)
    assert "reading" in shown.getvalue() and "MB/s" in shown.getvalue() and "left" in shown.getvalue()


@pytest.mark.parametrize(("seconds", "said"), [(40, "40 s"), (720, "12 min"), (11_100, "3 h 05 min")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
