"""A group on the two hosts of tests/hosts.py: a tiny random Llama over one rank on each, and what clients ask of it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from fleet.local import prepare
from planner.plan import plan_values
from tests import tiny_llama
from tests.frontend.serving import FrontendProcess
from tests.hosts import Hosts
from tests.runtime.launched import Launched

STREAMS, MAX_SEQ_LEN = 64, 256
GRPC_PORT = 8001
TOKEN = "a token that only this group's hosts have 0123456789"
HEARTBEAT = ("--heartbeat-seconds", "0.3", "--dead-after-seconds", "2")


@dataclass
class Answer:
    """What a client got for one request. `done`: the stream ended with [DONE]."""

    status: int
    headers: dict[str, str]
    text: str = ""
    finish: str | None = None
    done: bool = False
    error: dict[str, Any] | None = None


class TwoHostGroup:
    """The engine of the model, TP 2, and the processes that serve it. Used from inside the leader's host."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.started: list[Launched] = []
        model = {
            "name": "tiny",
            "source": str(tiny_llama.write(folder / "checkpoint")),
            "backend": "cpu",
            "tensor_parallel": 2,
            "max_batch_size": 2 * STREAMS,
            "max_seq_len": MAX_SEQ_LEN,
            "serving": {"kv_cache_tokens": 2 * STREAMS * MAX_SEQ_LEN},
        }
        plan = plan_values({"cloud": "existing", "models": [model]}, base_dir=folder).models[0]
        self.prepared = prepare(plan, folder, folder / "state", lambda _: None)
        # Nobody asks these, and the BLS model has a process for each request of a batch.
        for other in ("ensemble", "preprocessing", "postprocessing", "tensorrt_llm_bls"):
            shutil.rmtree(self.prepared.repository / other)

    def launch(self, host: int, *flags: str, group_size: int = 2, env: dict[str, str] | None = None) -> Launched:
        """The launcher on that host, the first being the leader's; with its host's former state and logs."""
        directory = self.folder / f"host{host}-of-{group_size}"
        directory.mkdir(exist_ok=True)
        (directory / "token").write_text(TOKEN)
        place = {
            "LWS_LEADER_ADDRESS": self.hosts.addresses[0],
            "LWS_GROUP_SIZE": str(group_size),
            "LWS_WORKER_INDEX": str(host),
        }
        prepared = self.prepared
        files = ["--model-repository", str(prepared.repository), "--engine", str(prepared.engine)]
        arguments = [*files, "--token-file", f"{directory}/token", *HEARTBEAT, *flags]
        self.started.append(Launched(directory, arguments, place | (env or {}), self.hosts.prefix(host)))
        return self.started[-1]

    def frontend(self, leader: Launched, *flags: str, grpc_port: int = GRPC_PORT) -> FrontendProcess:
        """The frontend beside that leader, which it follows."""
        model = ("--model=tiny", f"--max-seq-len={MAX_SEQ_LEN}", f"--max-sequences={2 * STREAMS}")
        tokenizer = self.prepared.engine.resolve() / "tokenizer"
        state = f"--state={leader.run_dir / 'state.json'}"
        return FrontendProcess(grpc_port, tokenizer, *model, state, *flags, wait=False)

    def destroy(self) -> None:
        """For the end of a test, however it ended."""
        for launched in reversed(self.started):
            launched.destroy()


def question(number: int, tokens: int, *, stream: bool = True) -> dict[str, Any]:
    """A request whose answer is the same every time, greedy or drawn with a seed, and that long."""
    prompt = [3 + (7 * number + place) % 97 for place in range(4 + number % 5)]
    drawn = {"temperature": 0} if number % 2 else {"temperature": 1, "seed": number}
    return {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens, "stream": stream, **drawn}


async def ask(client: httpx2.AsyncClient, body: dict[str, Any], on_text: Callable[[], None] = lambda: None) -> Answer:
    """The answer, whatever it is; `on_text` is called at each piece of a stream."""
    async with client.stream("POST", "/v1/completions", json=body) as response:
        answer = Answer(response.status_code, dict(response.headers))
        if not response.headers["content-type"].startswith("text/event-stream"):
            _take(answer, json.loads(await response.aread()))
            return answer
        async for line in response.aiter_lines():
            assert not (line and answer.done), "something follows the end"
            if line == "data: [DONE]":
                answer.done = True
            elif line:
                _take(answer, json.loads(line.removeprefix("data: ")))
                on_text()
    return answer


def _take(answer: Answer, document: dict[str, Any]) -> None:
    assert answer.finish is None, "something follows the last token"
    answer.error = document.get("error")
    if answer.error is None:
        (choice,) = document["choices"]
        answer.text += choice["text"]
        answer.finish = choice["finish_reason"]
