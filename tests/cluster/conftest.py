"""One control plane with a scheduler for all tests of stacks."""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.cluster.control_plane import ControlPlane, assets, control_plane
from tests.cluster.fleets import forget, prepare
from tests.cluster.scheduling import Scheduler


@pytest.fixture(scope="session")
def scheduled_cluster(tmp_path_factory: pytest.TempPathFactory) -> Generator[ControlPlane]:
    """A control plane whose binaries include a kube-scheduler; the test skips where they are not there."""
    assets("kube-scheduler")
    with control_plane(tmp_path_factory.mktemp("scheduled")) as running:
        yield running


@pytest.fixture
def place(scheduled_cluster: ControlPlane, tmp_path: Path) -> Iterator[Callable[[str], Scheduler]]:
    """A function case -> a scheduler of a cluster without nodes, in which that case's claims are bound."""
    scheduler, prepared = Scheduler(scheduled_cluster, tmp_path), list[str]()

    def make(case: str) -> Scheduler:
        prepare(scheduled_cluster, scheduler, case)
        prepared.append(case)
        return scheduler

    yield make
    for case in prepared:
        forget(scheduled_cluster, scheduler, case)
