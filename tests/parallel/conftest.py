from collections.abc import Iterator

import pytest

from tests.worlds import World


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    with World(4) as ranks:
        yield ranks
