"""Clients of the streams that tests/benchmarks/frontend.py measures: when each token's text was there."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
import tritonclient.grpc.aio

TOKENS = 128
# As many tokens as words, and none of them a part of a character: every token is a piece of text to every contender.
PROMPT = " one two three four five six seven eight nine ten eleven twelve"
grpc: Any = tritonclient.grpc.aio
Stream = Callable[[int, int], Awaitable[list[float]]]
"""Of a seed and a pace in milliseconds: when each token was there (CLOCK_MONOTONIC)."""


class Choice(msgspec.Struct):
    text: str


class Event(msgspec.Struct):
    """OpenAI's has choices, Triton's `generate_stream` the output tensors."""

    choices: list[Choice] = []
    text_output: str = ""


EVENT = msgspec.json.Decoder(Event)


def openai_stream(port: int) -> Stream:
    body = {"model": "smollm2", "prompt": PROMPT, "max_tokens": TOKENS, "stream": True}
    return lambda seed, pace: http_stream(port, "/v1/completions", body | {"seed": seed, "min_tokens": pace})


def generate_stream(port: int, model: str) -> Stream:
    """Triton's own events over HTTP."""
    body = {"text_input": PROMPT, "max_tokens": TOKENS, "stream": True}
    path = f"/v2/models/{model}/generate_stream"
    return lambda seed, pace: http_stream(port, path, body | {"seed": seed, "min_tokens": pace})


async def http_stream(port: int, path: str, body: dict[str, Any]) -> list[float]:
    """Every event is parsed."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    client = HttpClient()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: client, "127.0.0.1", port)
    transport.write(head.encode() + content)
    await client.done
    transport.close()
    return check(client.times, "".join(client.pieces))


class HttpClient(asyncio.Protocol):
    """Reads the events of one chunked answer."""

    def __init__(self) -> None:
        self.times, self.pieces, self.rest = list[float](), list[str](), b""
        self.done = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        at = time.monotonic()
        for line in lines:
            if line.startswith(b"data: {"):
                event = EVENT.decode(line[6:])
                if text := event.choices[0].text if event.choices else event.text_output:
                    self.pieces.append(text)
                    self.times.append(at)
            elif line == b"0\r":  # the chunk that ends an answer
                self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the answer was cut"))


def grpc_stream(client: Any, model: str) -> Stream:
    """The client and its message types are NVIDIA's own."""
    inputs = {"text_input": np.array([[PROMPT.encode()]], np.object_), "max_tokens": np.array([[TOKENS]], np.int32)}
    inputs["stream"] = np.array([[True]])

    async def stream(seed: int, pace: int) -> list[float]:
        arrived = await responses(client, model, "text_output", inputs, seed, pace)
        # A BYTES tensor of one element: its length in four bytes, then the text.
        return check([at for at, _ in arrived], b"".join(raw[4:] for _, raw in arrived).decode())

    return stream


def engine_stream(client: Any) -> Stream:
    """Token ids without text: what Triton takes for itself."""
    ids = list(range(300, 312))
    inputs = {"input_ids": np.array([ids], np.int32), "input_lengths": np.array([[len(ids)]], np.int32)}
    inputs |= {"request_output_len": np.array([[TOKENS]], np.int32), "streaming": np.array([[True]])}

    async def stream(seed: int, pace: int) -> list[float]:
        arrived = await responses(client, "tensorrt_llm", "output_ids", inputs, seed, pace)
        assert len(arrived) == TOKENS
        return [at for at, _ in arrived]

    return stream


async def responses(
    client: Any, model: str, output: str, inputs: dict[str, Any], seed: int, pace: int
) -> list[tuple[float, bytes]]:
    inputs = inputs | {"seed": np.array([[seed]], np.uint64), "min_tokens": np.array([[pace]], np.int32)}
    types = {"O": "BYTES", "i": "INT32", "u": "UINT64", "b": "BOOL"}
    tensors = [grpc.InferInput(name, list(array.shape), types[array.dtype.kind]) for name, array in inputs.items()]
    for tensor, array in zip(tensors, inputs.values(), strict=True):
        tensor.set_data_from_numpy(array)
    request = {"model_name": model, "inputs": tensors, "outputs": [grpc.InferRequestedOutput(output)]}

    async def requests() -> Any:
        yield {**request, "enable_empty_final_response": True}

    arrived = list[tuple[float, bytes]]()
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        response = result.get_response()
        if response.raw_output_contents:
            arrived.append((time.monotonic(), response.raw_output_contents[0]))
        if response.parameters["triton_final_response"].bool_param:
            break
    return arrived


def check(times: list[float], text: str) -> list[float]:
    words = PROMPT.split()
    assert len(times) == TOKENS, len(times)
    assert text.split() == [words[i % len(words)] for i in range(TOKENS)], text
    return times
