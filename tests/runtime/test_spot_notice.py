"""The notice of spot nodes, from metadata services on loopback that are as strict as the clouds' own."""

import os
import signal
import threading
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from runtime import spot_notice
from runtime.spot_notice import ADDRESS_VARIABLE, CLOUDS, is_reclaimed
from tests.ports import free_ports
from tests.runtime.launched import Launched, publish_engine, until, write_model_repository
from tests.runtime.metadata import Metadata, metadata_service


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Generator[Metadata]:
    with metadata_service() as service:
        monkeypatch.setenv(ADDRESS_VARIABLE, service.address)
        yield service


@pytest.fixture
def launch(tmp_path: Path) -> Generator[Callable[..., Launched]]:
    repository, engine = write_model_repository(tmp_path / "repository"), publish_engine(tmp_path / "store", 2)
    started: list[Launched] = []

    def start(*more: str) -> Launched:
        ports = zip(("--http-port", "--grpc-port", "--metrics-port"), map(str, free_ports(3)), strict=True)
        files = ["--model-repository", str(repository), "--engine", str(engine)]
        started.append(Launched(tmp_path / "host", [*files, *(word for port in ports for word in port), *more]))
        return started[-1]

    yield start
    for launched in started:
        launched.destroy()


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_node_is_reclaimed_once_its_cloud_says_so(metadata: Metadata, cloud: str) -> None:
    assert not is_reclaimed(cloud)
    metadata.noticed.set()
    assert is_reclaimed(cloud)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_requests_in_flight_end_on_the_notice_and_then_the_ranks(
    metadata: Metadata, launch: Callable[..., Launched], cloud: str
) -> None:
    group = launch("--spot-notice", cloud, "--drain-seconds", "20")
    group.ready()
    answers: list[int] = []
    # Longer than the longest pause between two questions.
    slow = threading.Thread(target=lambda: answers.append(group.ask(8000)))
    slow.start()
    group.until_asked(8000)
    metadata.noticed.set()
    until(lambda: group.state()["phase"] == "stopping", "the notice is heard", 10)
    assert not answers
    slow.join()
    assert answers == [8000 * 3]
    assert group.process.wait(10) == 0
    assert "the cloud takes this spot node back" in group.log()


def test_a_service_that_fails_is_asked_again_and_told_of_once(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spot_notice, "RETRY_SECONDS", 0.01)
    ended, said = threading.Event(), list[str]()

    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (os.getpid(), signal.SIGTERM)
        ended.set()

    monkeypatch.setattr(os, "kill", kill)
    metadata.down = True
    spot_notice.end_on_notice("azure", said.append)
    until(lambda: len(metadata.asked) > 5, "it asks again", 10)
    assert len(said) == 1
    assert "asking on" in said[0]
    metadata.noticed.set()
    metadata.down = False
    assert ended.wait(10)
