"""One control plane for the tests of this folder that need a scheduler, without its own start in each module."""

from collections.abc import Generator

import pytest

from tests.cluster.control_plane import ControlPlane, assets, control_plane


@pytest.fixture(scope="session")
def scheduled_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    """A control plane whose binaries include a kube-scheduler; the test skips where they are not there."""
    assets("kube-scheduler")
    with control_plane(tmp_path_factory.mktemp("scheduled")) as running:
        yield running
