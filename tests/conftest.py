"""How tests are spread over workers: a file stays on one, and so do all tests that share the Slurm cluster."""

import pytest
from xdist.scheduler import LoadFileScheduling

SLURM = "tests/slurm/"


class OneClusterScheduling(LoadFileScheduling):
    """`--dist loadfile`, with one folder as if it were one file."""

    def _split_scope(self, nodeid: str) -> str:
        return SLURM if nodeid.startswith(SLURM) else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneClusterScheduling | None:
    """Another `--dist` is left as it is."""
    return OneClusterScheduling(config, log) if config.getoption("dist") == "loadfile" else None  # type: ignore[arg-type]
