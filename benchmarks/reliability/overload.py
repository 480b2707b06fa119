"""Ten times more than a server can do: ``python -m benchmarks.reliability.overload``.

Serves a model by a real ``serve run``. First its capacity is measured: clients that send one task
after another. Then tasks are sent at ten times that rate for a minute, whatever becomes of them, as
strangers would send them. In the end single tasks tell when the server is its old self. Prints how
many tasks were answered a second, how soon the others were refused, how long recovery took, what
had the machine meanwhile; writes ``overload.json`` and, with matplotlib, ``overload.png``.

The demo model answers in milliseconds, so that ten times its capacity is hundreds of requests a
second: a test of the server in front of the engine. ``--geometry qwen2.5-0.5b --waiting 4`` has
random weights in the shape of a real model: its tasks take seconds, and ten times its capacity is
tens of requests a second, as with models that people use.

The clients run on the same machine and take time from the server, at the same priority. With
``--pin`` the replica has the first core to itself, and all others share the rest. Exits with 1 if
goodput was more than 10 % below the capacity, a refusal in a hundred took more than 100 ms,
recovery took more than 5 s, or anything was answered but an answer (the right one) or 503 with
Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp

from benchmarks.harness import command
from benchmarks.harness.client import Answer, Client, Endpoint
from benchmarks.harness.load import at_once
from benchmarks.harness.processes import cpu_spent, pin, step_back
from benchmarks.harness.report import about, say, write
from benchmarks.harness.served_models import DEMO as DEMO_GEOMETRY
from benchmarks.harness.served_models import geometry_names, make_model
from benchmarks.harness.server import DEMO, TUNED, Server, serving
from benchmarks.harness.tasks import demo_task, demo_tasks, uniform_jobs
from benchmarks.reliability.overload_report import Asked, Found, answers_per_second

_SAMPLE_EVERY_S = 0.5
_PROBE_EVERY_S = 0.25
_PROBE_FACTOR = 2.0  # a server is its old self when a task takes at most so many times as before
_PATIENCE_S = 30.0
_PROMPT_TOKENS = 64
_TASKS = 40


def random_tasks(answer_tokens: int) -> list[dict[str, Any]]:
    """Tasks for a model with random weights, whose answers are as long as they may be."""
    made = uniform_jobs(_TASKS, _PROMPT_TOKENS, answer_tokens)
    config = {"max_new_tokens": answer_tokens}
    return [demo_task(number, job.text, config) for number, job in enumerate(made)]


class Sender:
    """Sends tasks and compares answers to the same task."""

    def __init__(self, client: Client, tasks: list[dict[str, Any]]) -> None:
        self._client = client
        self._tasks = tasks
        self._answers: dict[int, Any] = {}

    async def ask(self, number: int, start: float) -> Asked:
        """Send one task and wait for what comes of it. ``start`` is that of the run."""
        number %= len(self._tasks)
        answer = await self._client.ask(self._tasks[number], stream=False)
        wrong = self._wrong(number, answer)
        return Asked(answer.sent - start, answer.seconds, answer.status, wrong)

    def _wrong(self, number: int, answer: Answer) -> str | None:
        if answer.status == 503:
            return None if answer.retry_after else "a 503 without Retry-After"
        if not answer.complete:
            return answer.error
        choices = answer.events[0][1]["choices"]
        if self._answers.setdefault(number, choices) != choices:
            return "another answer than before"
        return None


async def closed_loop(sender: Sender, clients: int, seconds: float) -> list[Asked]:
    """``clients`` that send one task after another; all answers are waited for."""
    start = time.perf_counter()
    numbers = takewhile(lambda _: time.perf_counter() < start + seconds, count())
    return await at_once(numbers, clients, partial(sender.ask, start=start))


async def open_loop(sender: Sender, rate: float, seconds: float) -> list[asyncio.Task[Asked]]:
    """``rate`` tasks a second, whatever becomes of those before; some are still open in the end."""
    start = time.perf_counter()
    requests = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        requests.append(asyncio.create_task(sender.ask(number, start)))
    return requests


async def recovery(sender: Sender, usual_s: float) -> float | None:
    """Seconds until a task takes about as long as usual again; None if that takes too long."""
    start = time.perf_counter()
    # No more than one after another, of tasks that take long: else the probes are the next flood.
    every = max(_PROBE_EVERY_S, usual_s)
    probes: list[asyncio.Task[Asked]] = []
    while time.perf_counter() < start + _PATIENCE_S:
        probes.append(asyncio.create_task(sender.ask(len(probes), start)))
        await asyncio.sleep(every)
        for found in (probe.result() for probe in probes if probe.done()):
            if found.status == 200 and found.seconds <= _PROBE_FACTOR * usual_s:
                await asyncio.gather(*probes)
                return found.at + found.seconds
    await asyncio.gather(*probes)
    return None


async def measure(
    server: Server, tasks: list[dict[str, Any]], options: argparse.Namespace
) -> Found:
    """Capacity, flood, recovery."""
    async with Client(Endpoint(server.address, "demo")) as client:
        sender = Sender(client, tasks)
        await closed_loop(sender, 1, 3.0)  # whatever is slow the first time
        alone = await closed_loop(sender, 1, 5.0)
        usual = max(one.seconds for one in alone)
        until = options.capacity_seconds
        # Enough that none of the rows is ever empty, and not so many that some are refused.
        clients = options.sequences + options.waiting // 2
        async with _watched(server, client) as at_capacity:
            busy = await closed_loop(sender, clients, until)
        capacity = answers_per_second(busy, until)
        rate = options.times * capacity
        say(f"capacity {capacity:.1f} tasks/s; now {rate:.0f} tasks/s for {options.seconds:g} s")
        async with _watched(server, client) as in_the_flood:
            requests = await open_loop(sender, rate, options.seconds)
        recovered = await recovery(sender, usual)
        flood = await asyncio.gather(*requests)
    work = {"at capacity": at_capacity, "in the flood": in_the_flood}
    return Found(usual, capacity, rate, options.seconds, flood, recovered, work)


@asynccontextmanager
async def _watched(server: Server, client: Client) -> AsyncIterator[dict[str, float]]:
    """What works while the body runs: filled in at its end, see `Found.work`."""
    work: dict[str, float] = {}
    loads: list[dict[str, int]] = []
    watching = asyncio.create_task(_watch(client, loads))
    with cpu_spent(server) as spent:
        yield work
    watching.cancel()
    seconds = spent.pop("seconds")
    work |= {part: taken / seconds for part, taken in spent.items()}
    if loads:
        work["rows"] = fmean(load["running_sequences"] for load in loads)
        work["waiting"] = fmean(load["waiting"] for load in loads)


async def _watch(client: Client, loads: list[dict[str, int]]) -> None:
    """Ask the replica what it does, until cancelled. A question without an answer is left out."""
    while True:
        with suppress(aiohttp.ClientError, TimeoutError):
            loads += await client.loads()
        await asyncio.sleep(_SAMPLE_EVERY_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
    model = DEMO | {"engine": {"max_sequences": options.sequences, "max_waiting": options.waiting}}
    tasks = demo_tasks(_TASKS, images=options.images)
    with tempfile.TemporaryDirectory() as folder:
        if options.geometry != DEMO_GEOMETRY:
            served = make_model(options.geometry, None, options.model_dir or Path(folder, "model"))
            model |= {"source": served.source, "dtype": served.dtype}
            tasks = random_tasks(options.tokens)
        environment = TUNED if options.tuned else {}
        with serving({"models": [model]}, Path(folder), environment) as server:
            step_back(server)
            if options.pin:
                pin(server)
            found = asyncio.run(measure(server, tasks, options))
    print(found.text())
    for line in found.wrong[:10]:
        say(f"  {line[:200]}")
    data = about("overload", options) | found.to_json()
    write(options.out, "overload", data, found.panels(), share_x=True)
    return 0 if found.good else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.reliability.overload", __doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=60.0, help="of the flood")
    add("--times", type=float, default=10.0, help="the capacity")
    add("--capacity-seconds", type=float, default=20.0)
    add("--sequences", type=int, default=16, help="max_sequences of the engine")
    add("--waiting", type=int, default=16, help="max_waiting of the engine")
    add("--geometry", choices=geometry_names(), default=DEMO_GEOMETRY)
    add("--tokens", type=int, default=16, help="of an answer of random weights")
    add("--model-dir", type=Path, help="keeps the random model for the next run")
    add("--tuned", action="store_true", help="Ray's HAProxy takes the requests")
    add("--pin", action="store_true", help="the replica has a core to itself")
    add("--images", action="store_true", help="a quarter of the tasks has one")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
