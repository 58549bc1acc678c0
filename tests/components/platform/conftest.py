"""One control plane for all of these tests."""

from collections.abc import Generator

import pytest

from tests.cluster.control_plane import ControlPlane, control_plane


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    """A real API server; the test skips where its binaries are not installed."""
    with control_plane(tmp_path_factory.mktemp("control-plane")) as running:
        yield running
