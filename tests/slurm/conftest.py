"""One cluster for all tests of this folder; tests/conftest.py sees to it that one worker runs them."""

import os
from collections.abc import Iterator

import pytest

from tests.slurm.cluster import NODES, Cluster, missing


@pytest.fixture(scope="session")
def _session_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if lacking := missing():
        says = f"a Slurm cluster needs {', '.join(lacking)}: as root, `make slurm-tools` installs it"
        # Where it could be had, a skip would hide that nothing was tested.
        if os.geteuid() == 0:
            pytest.fail(says)
        pytest.skip(says)
    with Cluster(shared=[tmp_path_factory.getbasetemp()]) as cluster:
        yield cluster


@pytest.fixture
def cluster(_session_cluster: Cluster) -> Cluster:
    """The session's cluster with all nodes idle, whatever the test before did to it."""
    _session_cluster.heal()
    _session_cluster.wait_for_nodes("idle", NODES, timeout=60)
    return _session_cluster
