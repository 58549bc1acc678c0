"""64 streams are in flight when a host of the group must end: each ends whole, and the group comes back.

DRAIN_ROUNDS=20 repeats it as often (-s shows the table).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from runtime.process_tree import die_with_parent
from runtime.spot_notice import ADDRESS_VARIABLE
from tests.e2e.two_host_group import MAX_SEQ_LEN, STREAMS, Answer, TwoHostGroup, ask, question
from tests.frontend.serving import ROOT, FrontendProcess
from tests.hosts import two_hosts
from tests.ports import free_ports
from tests.runtime.launched import Launched
from tests.runtime.metadata import Metadata, metadata_service

ROUNDS = int(os.environ.get("DRAIN_ROUNDS", "1"))
TOKENS = 150
NOTICE_SECONDS = 30
"""What GKE and Azure give."""
DRAIN = ("--drain-seconds", "25")
QUESTIONS = [question(number, TOKENS) for number in range(STREAMS)]


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Generator[TwoHostGroup]:
    with two_hosts() as hosts, hosts.inside(0):
        made = TwoHostGroup(hosts, tmp_path_factory.mktemp("drain"))
        yield made
        made.destroy()


@pytest.fixture(scope="module")
def frontend(group: TwoHostGroup) -> Iterator[FrontendProcess]:
    """Ready whenever a worker has joined the leader that is beside it."""
    process = group.frontend(group.launch(0, *DRAIN))
    yield process
    output = process.stop()
    assert "Traceback" not in output, output


@pytest.fixture(scope="module")
def metadata(group: TwoHostGroup) -> Generator[Metadata]:
    with group.hosts.inside(1), metadata_service() as service, group.hosts.inside(0):
        yield service


@pytest.fixture(scope="module")
def whole(group: TwoHostGroup, frontend: FrontendProcess) -> list[str]:
    """The texts of streams that nothing befalls."""
    worker = group.launch(1, *DRAIN)
    frontend.wait_ready()
    undisturbed = texts(asyncio.run(all_answers(frontend, QUESTIONS)))
    assert len(set(undisturbed)) == STREAMS
    assert worker.stop() == 0
    return undisturbed


def client_of(frontend: FrontendProcess) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=frontend.url, timeout=60, limits=httpx2.Limits(max_connections=None))


async def all_answers(frontend: FrontendProcess, questions: list[dict[str, Any]]) -> list[Answer]:
    async with client_of(frontend) as client:
        return await asyncio.gather(*(ask(client, body) for body in questions))


def texts(answers: list[Answer]) -> list[str]:
    """The answers' texts, all of them whole."""
    for answer in answers:
        assert (answer.status, answer.error, answer.finish, answer.done) == (200, None, "length", True), answer
    return [answer.text for answer in answers]


async def refusals(client: httpx2.AsyncClient, over: asyncio.Event) -> list[Answer]:
    """What new requests are told from the first refusal on."""
    told: list[Answer] = []
    while not over.is_set():
        answer = await ask(client, question(1, 1))
        if told or answer.status != 200:
            told.append(answer)
        await asyncio.sleep(0.02)
    return told


async def streams_through(client: httpx2.AsyncClient, numbers: range, tell: Callable[[], None]) -> list[Answer]:
    """The answers of streams in flight when `tell` is called."""
    begun, all_begun = set[int](), asyncio.Event()

    async def stream(number: int) -> Answer:
        def on_text() -> None:
            begun.add(number)
            if len(begun) == len(numbers):
                all_begun.set()

        return await ask(client, QUESTIONS[number], on_text)

    streams = asyncio.gather(*map(stream, numbers))
    await asyncio.wait_for(all_begun.wait(), 60)
    tell()
    return await streams


async def drain_once(frontend: FrontendProcess, tell: Callable[[], None]) -> tuple[list[Answer], list[Answer], float]:
    """The answers of streams that `tell` came upon, what new requests were told meanwhile, and how long they took."""
    async with client_of(frontend) as client, client_of(frontend) as newcomers:
        over, told = asyncio.Event(), list[float]()
        asking: list[asyncio.Task[list[Answer]]] = []

        def tell_and_ask() -> None:
            tell()
            told.append(time.monotonic())
            asking.append(asyncio.create_task(refusals(newcomers, over)))

        answers = await streams_through(client, range(STREAMS), tell_and_ask)
        took = time.monotonic() - told[0]
        over.set()
        return answers, await asking[0], took


@pytest.mark.timeout(300 + 120 * ROUNDS)
@pytest.mark.parametrize("way", ["SIGTERM", "spot notice"])
def test_streams_end_whole_when_a_host_must_end_and_the_group_comes_back(
    group: TwoHostGroup, frontend: FrontendProcess, metadata: Metadata, whole: list[str], way: str
) -> None:
    flags = DRAIN if way == "SIGTERM" else (*DRAIN, "--spot-notice", "azure")

    def start_worker() -> Launched:
        metadata.noticed.clear()
        return group.launch(1, *flags, env={ADDRESS_VARIABLE: metadata.address})

    worker = start_worker()
    frontend.wait_ready()
    print(f"\n{way}: round, streams whole, new requests refused, seconds for the streams, until served again")
    for number in range(1, ROUNDS + 1):
        terminate = partial(worker.process.send_signal, signal.SIGTERM)
        tell = terminate if way == "SIGTERM" else metadata.noticed.set
        answers, refused, took = asyncio.run(drain_once(frontend, tell))
        assert texts(answers) == whole, "cut or doubled"
        assert refused, "the streams ended before the group began to drain"
        for answer in refused:
            assert (answer.status, answer.headers["retry-after"]) == (503, "1"), answer
            assert answer.error is not None
            assert answer.error["code"] == "engine_unavailable"
        assert worker.process.wait(NOTICE_SECONDS) == 0
        told_at = time.monotonic()
        worker = start_worker()
        frontend.wait_ready()
        again = time.monotonic() - told_at
        print(f"{number:>4} {len(answers):>6} {len(refused):>6} {took:>8.1f} {again:>8.1f}")
    assert texts(asyncio.run(all_answers(frontend, QUESTIONS[:4]))) == whole[:4]
    assert worker.stop() == 0


def test_a_spare_replica_takes_the_traffic(group: TwoHostGroup, frontend: FrontendProcess) -> None:
    """A client that asks the next address on 503, as a Service leads it there, notices nothing of a drain."""
    ports = free_ports(3)
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    worker, alone = group.launch(1, *DRAIN), group.launch(0, *DRAIN, *flags, group_size=1)
    spare = group.frontend(alone, grpc_port=ports[1])
    frontend.wait_ready()
    spare.wait_ready()
    served_by: list[FrontendProcess] = []

    async def one_after_another(number: int) -> list[Answer]:
        answers: list[Answer] = []
        while worker.process.poll() is None:
            for replica in (frontend, spare):
                async with client_of(replica) as client:
                    answer = await ask(client, question(number, 40))
                if answer.status != 503:
                    served_by.append(replica)
                    answers.append(answer)
                    break
        return answers

    async def through_the_drain() -> list[list[Answer]]:
        clients = asyncio.gather(*map(one_after_another, range(4)))
        await asyncio.sleep(0.5)
        worker.process.send_signal(signal.SIGTERM)
        return await clients

    try:
        for answers in asyncio.run(through_the_drain()):
            assert len(set(texts(answers))) == 1
        assert served_by[0] is frontend
        assert spare in served_by
        assert worker.process.wait(NOTICE_SECONDS) == 0
        assert alone.stop() == 0
    finally:
        spare.stop()


def test_a_pod_whose_containers_are_told_to_end_at_once_cuts_nothing(group: TwoHostGroup, whole: list[str]) -> None:
    ports = free_ports(3)
    flags = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    launcher = group.launch(0, *DRAIN, *flags, group_size=1)
    frontend = group.frontend(launcher, grpc_port=ports[1])
    frontend.wait_ready()

    def tell() -> None:
        launcher.process.send_signal(signal.SIGTERM)
        frontend.process.send_signal(signal.SIGTERM)

    async def told() -> list[Answer]:
        async with client_of(frontend) as client:
            return await streams_through(client, range(16), tell)

    try:
        assert texts(asyncio.run(told())) == whole[:16]
        assert (frontend.process.wait(20), launcher.process.wait(20)) == (0, 0)
    finally:
        frontend.stop()


def test_fleet_serve_cuts_nothing_when_it_is_told_to_end(group: TwoHostGroup) -> None:
    """Its frontend, a process of its own, is told last, when nothing is in flight any more."""
    state, ports = group.folder / "serve", free_ports(4)
    stack = group.folder / "Pulumi.tiny.yaml"
    source = group.folder / "checkpoint"
    model = {"name": "tiny", "source": str(source), "backend": "cpu", "max_batch_size": 4, "max_seq_len": MAX_SEQ_LEN}
    stack.write_text(json.dumps({"config": {"tritonfleet:cloud": "existing", "tritonfleet:models": [model]}}))
    names = ("http", "grpc", "metrics", "frontend")
    flags = [f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)]
    command = [sys.executable, "-m", "fleet", "serve", str(stack), f"--state-dir={state}", *flags]
    process = subprocess.Popen(command, cwd=ROOT, preexec_fn=die_with_parent)

    async def told() -> tuple[list[Answer], Answer]:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{ports[-1]}", timeout=60) as client:
            while not await answers_ready(client):
                assert process.poll() is None
                await asyncio.sleep(0.1)
            streams = asyncio.create_task(streams_through(client, range(4), process.terminate))
            while await answers_ready(client):
                await asyncio.sleep(0.02)
            refused = await ask(client, QUESTIONS[0])
            assert not streams.done()
            return await streams, refused

    try:
        answers, refused = asyncio.run(told())
        assert len(set(texts(answers))) == 4
        assert (refused.status, (refused.error or {}).get("code")) == (503, "shutting_down")
        assert process.wait(30) == 0
    finally:
        process.kill()


async def answers_ready(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/readyz")).status_code == 200
    except httpx2.TransportError:
        return False
