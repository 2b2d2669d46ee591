"""All three axes at once: two stages of two data ranks of two tensor ranks train like the reference."""

from collections.abc import Iterator

import pytest

from tests.layouts.cases import EIGHT, Setup
from tests.layouts.conftest import Judge
from tests.layouts.parity import describe, failed
from tests.layouts.recording import record
from tests.worlds import World


@pytest.fixture(scope="module")
def eight() -> Iterator[World]:
    """A world of its own, gone afterwards: eight ranks are more than a small machine wants to keep."""
    with World(8) as world:
        yield world


@pytest.mark.parametrize(
    ("case_name", "setup"), [pytest.param(case, setup, id=f"{case}-{setup.name}") for case, setup in EIGHT]
)
def test_eight_ranks_train_like_the_reference(case_name: str, setup: Setup, eight: World, judge: Judge):
    verdict = judge(case_name, setup, eight.run(record, case_name, setup))
    assert not failed(verdict), describe(verdict)
