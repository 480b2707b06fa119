"""The clients of `benchmarks.reliability.overload`: what is sent, when, and what became of it."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp

from benchmarks.harness.models import uniform_tasks
from benchmarks.reliability.overload_report import Asked
from benchmarks.reliability.tasks import make_tasks

_PROBE_EVERY_S = 0.25
_PROBE_FACTOR = 2.0  # a server is its old self when a task takes at most so many times as before
_PATIENCE_S = 30.0
_PROMPT_TOKENS = 64
_TASKS = 40


def demo_tasks(*, pictures: bool) -> list[dict[str, Any]]:
    """Tasks for the demo model; with pictures, a quarter of them has one."""
    tasks = make_tasks(_TASKS)
    return [task for task in tasks if pictures or isinstance(task["messages"][0]["content"], str)]


def random_tasks(answer_tokens: int) -> list[dict[str, Any]]:
    """Tasks for a model with random weights, whose answers are as long as they may be."""
    return [
        {
            "model": "demo",
            "messages": [{"role": "user", "content": task.prompt}],
            "generation_config": {"max_new_tokens": task.answer_tokens},
        }
        for task in uniform_tasks(_TASKS, prompt_tokens=_PROMPT_TOKENS, answer_tokens=answer_tokens)
    ]


class Sender:
    """Sends tasks and compares answers to the same task.

    By aiohttp: for each request httpx looks at each of its connections, which are many here.
    """

    def __init__(self, http: aiohttp.ClientSession, tasks: list[dict[str, Any]]) -> None:
        self._http = http
        self._bodies = [json.dumps(task) for task in tasks]
        self._answers: dict[int, Any] = {}

    async def ask(self, number: int, start: float) -> Asked:
        """Send one task and wait for what comes of it."""
        number %= len(self._bodies)
        began = time.monotonic()
        try:
            async with self._http.post("/v1/tasks", data=self._bodies[number]) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return Asked(began - start, time.monotonic() - began, 0, repr(error))
        seconds = time.monotonic() - began
        wrong = self._wrong(number, response, body)
        return Asked(began - start, seconds, response.status, wrong)

    def _wrong(self, number: int, response: aiohttp.ClientResponse, body: bytes) -> str | None:
        if response.status == 503:
            return None if "retry-after" in response.headers else "a 503 without Retry-After"
        if response.status != 200:
            return body.decode()
        choices = json.loads(body)["choices"]
        if self._answers.setdefault(number, choices) != choices:
            return "another answer than before"
        return None


async def closed_loop(sender: Sender, clients: int, seconds: float) -> list[Asked]:
    """``clients`` that send one task after another."""
    start = time.monotonic()
    numbers = iter(range(10**9))
    asked: list[Asked] = []

    async def client() -> None:
        while time.monotonic() < start + seconds:
            asked.append(await sender.ask(next(numbers), start))

    await asyncio.gather(*(client() for _ in range(clients)))
    return asked


async def open_loop(sender: Sender, rate: float, seconds: float) -> list[asyncio.Task[Asked]]:
    """``rate`` tasks a second, whatever becomes of those before; some are still open in the end."""
    start = time.monotonic()
    requests = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        requests.append(asyncio.create_task(sender.ask(number, start)))
    return requests


async def recovery(sender: Sender, usual_s: float) -> float | None:
    """Seconds until a task takes about as long as usual again; None if that takes too long."""
    start = time.monotonic()
    # No more than one after another, of tasks that take long: else the probes are the next flood.
    every = max(_PROBE_EVERY_S, usual_s)
    probes: list[asyncio.Task[Asked]] = []
    while time.monotonic() < start + _PATIENCE_S:
        probes.append(asyncio.create_task(sender.ask(len(probes), start)))
        await asyncio.sleep(every)
        for probe in probes:
            if not probe.done():
                continue
            found = probe.result()
            if found.status == 200 and found.seconds <= _PROBE_FACTOR * usual_s:
                await asyncio.gather(*probes)
                return found.at + found.seconds
    await asyncio.gather(*probes)
    return None
