"""Clients of the fleet in chaos.py. They know which ends of a request are proper, and write down all others."""

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import httpx2
import openai

from tests.e2e.chaos import Fleet
from tests.e2e.two_host_group import ask, question

BOUND_SECONDS = 30
"""A request that has no answer and no error by then hangs."""
START_SECONDS = 30
"""What a frontend needs to start, on a busy machine."""
QUESTIONS = [(number, tokens) for number in range(4) for tokens in (4, 40, 120)]


class Clients:
    """Ask without a pause and write down how each request ended; `wrong` has what no client should see."""

    def __init__(self, fleet: Fleet, expected: dict[tuple[int, int], str], seed: int) -> None:
        self.fleet, self.expected, self.dice = fleet, expected, random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.longest = 0.0

    async def run(self, over: asyncio.Event) -> None:
        ways = [self._streamed, self._streamed, self._whole, self._leaves, self._openai]
        while not over.is_set():
            way, asked = self.dice.choice(ways), self.dice.choice(QUESTIONS)
            began = time.monotonic()
            try:
                async with asyncio.timeout(BOUND_SECONDS):
                    outcome = await way(asked)
            except TimeoutError:
                self.wrong.append(f"{way.__name__}: no answer and no error within {BOUND_SECONDS} s")
                continue
            except (httpx2.TransportError, openai.APIConnectionError) as error:
                outcome = await self._broken(way.__name__, error, began)
            except (AssertionError, ValueError, LookupError) as error:
                self.wrong.append(f"{way.__name__}, {asked}: {error!r}")
                continue
            self.longest = max(self.longest, time.monotonic() - began)
            self.outcomes[outcome] += 1
            await asyncio.sleep(0.02 if outcome == "whole answer" else 0.2)

    async def _streamed(self, asked: tuple[int, int]) -> str:
        return await self._asked(asked, stream=True)

    async def _whole(self, asked: tuple[int, int]) -> str:
        return await self._asked(asked, stream=False)

    async def _asked(self, asked: tuple[int, int], *, stream: bool) -> str:
        async with self._client() as client:
            answer = await ask(client, question(*asked, stream=stream))
        if answer.error is not None:
            return self._error(answer.status, answer.headers, answer.error, in_band=answer.done)
        if (answer.status, answer.text, answer.finish) != (200, self.expected[asked], "length"):
            self.wrong.append(f"{asked}: {answer}")
        elif stream and not answer.done:
            self.wrong.append(f"{asked}: no [DONE]: {answer}")
        return "whole answer"

    async def _leaves(self, asked: tuple[int, int]) -> str:
        async with (
            self._client() as client,
            client.stream("POST", "/v1/completions", json=question(*asked)) as response,
        ):
            if response.status_code != 200:
                error = json.loads(await response.aread())["error"]
                return self._error(response.status_code, dict(response.headers), error, in_band=False)
            async for _ in response.aiter_lines():
                break
        return "left"

    async def _openai(self, asked: tuple[int, int]) -> str:
        body = question(*asked)
        async with openai.AsyncOpenAI(base_url=f"{self.fleet.url}/v1", api_key="-", max_retries=0) as client:
            try:
                text = ""
                stream = await client.completions.create(
                    model=body["model"],
                    prompt=body["prompt"],
                    max_tokens=body["max_tokens"],
                    temperature=body["temperature"],
                    seed=asked[0],  # a greedy answer is the same with any
                    stream=True,
                    extra_body={"min_tokens": body["min_tokens"]},
                )
                async for chunk in stream:
                    text += chunk.choices[0].text
            except openai.APIStatusError as error:
                told: Any = error.body
                return self._error(error.status_code, dict(error.response.headers), told, in_band=False)
            except openai.APIConnectionError:
                raise
            except openai.APIError as error:
                told = error.body
                return self._error(200, {}, told, in_band=True)
        if text != self.expected[asked]:
            self.wrong.append(f"openai, {asked}: {text}")
        return "whole answer"

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.fleet.url, timeout=None)

    def _error(self, status: int, headers: dict[str, str], error: dict[str, Any], *, in_band: bool) -> str:
        """A proper error says what it is in OpenAI's form, and when to ask again."""
        proper = set(error) == {"message", "type", "param", "code"} and error["type"] == "server_error"
        if not proper or not ((status == 200 and in_band) or (status == 503 and "retry-after" in headers)):
            self.wrong.append(f"{status} {headers} {error}")
        return f"{'in-band' if in_band else status} {error['code']}"

    async def _broken(self, way: str, error: Exception, began: float) -> str:
        """A connection is refused from when a frontend is told to end until the next listens; only a kill breaks it."""
        await asyncio.sleep(0.5)  # until the supervisor knows
        lives, now = self.fleet.frontend.lives, time.monotonic()
        if isinstance(error, httpx2.ConnectError) or isinstance(error.__cause__, httpx2.ConnectError):
            allowed = any(min(life.told, life.killed) < now and life.ended > began - START_SECONDS for life in lives)
            outcome = "refused: no frontend"
        else:
            allowed = any(began < life.killed < now for life in lives)
            outcome = "broken: frontend killed"
        if not allowed:
            self.wrong.append(f"{way}: {error!r} while a frontend was there")
        return outcome
