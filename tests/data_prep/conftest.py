"""One Ray for the whole test process: starting it costs seconds."""

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from data_prep.ray_tasks import RayTasks


@pytest.fixture(scope="session")
def ray_tasks() -> Iterator[RayTasks]:
    if find_spec("ray") is None:  # not importorskip: its import would come before the settings that Ray reads then
        pytest.skip("the ray backend is optional")
    with RayTasks(workers=2) as tasks:
        yield tasks
