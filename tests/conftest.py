"""How tests are spread over workers: a file stays on one, and so do all tests that share the Slurm cluster.

What takes longest is begun first, so that no worker is left alone with a long file at the end: the cluster, which mostly waits
beside files that compute, then those below, then the rest in its own order.
"""

import pytest
from xdist.scheduler import LoadFileScheduling

SLURM = "tests/slurm/"
LONGEST_FIRST = (
    SLURM,
    "tests/layouts/test_parity.py",
    "tests/layouts/test_fuzz.py",
    "tests/layouts/test_engine_contract.py",
    "tests/layouts/test_mutations.py",
    "tests/test_worlds.py",
    "tests/layouts/test_covering.py",
    "tests/layouts/test_checkpoints.py",
    "tests/parity/test_parity_signals.py",
    "tests/layouts/test_memory_settings.py",
    "tests/metrics/test_tracker.py",
    "tests/data_prep/test_token_engines.py",
    "tests/launch/test_launch_faults.py",
    "tests/layouts/",
    "tests/data_prep/test_ray_tasks.py",
    "tests/data_prep/test_killed.py",
    "tests/data/test_token_shards.py",
    "tests/data/test_plan.py",
    "tests/faults/",
    "tests/test_evaluate.py",
    "tests/launch/",
    "tests/engine/",
)
"""Files and folders by the time that they take, the longest first; a test belongs to the first that it is under."""


class OneClusterScheduling(LoadFileScheduling):
    """`--dist loadfile`, with one folder as if it were one file."""

    def _split_scope(self, nodeid: str) -> str:
        return SLURM if nodeid.startswith(SLURM) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneClusterScheduling | None:
    """Another `--dist` is left as it is."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = (
        False  # it would begin with the files of many tests, which are not those that take long
    )
    return OneClusterScheduling(config, log)  # type: ignore[arg-type]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts the tests of a worker in the order in which files are handed out."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _place(item.nodeid))


def _place(nodeid: str) -> int:
    return next((place for place, path in enumerate(LONGEST_FIRST) if nodeid.startswith(path)), len(LONGEST_FIRST))
