"""The order of samples is made of loops over what is left: a fault in one must fail its test, not hold up all of them."""

import signal
from collections.abc import Iterator

import pytest

LONGEST_S = 120


@pytest.fixture(autouse=True)
def _endless_loops_fail() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise TimeoutError(f"still at work after {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
