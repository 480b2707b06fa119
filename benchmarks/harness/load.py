"""When requests are sent: the two kinds of load, and what comes of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from benchmarks.harness.client import Answer
from benchmarks.harness.report import say

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")

_TELL_EVERY_S = 10.0
_SEED = 20260101


@dataclass(frozen=True)
class Load:
    """How requests arrive: ``clients`` that each wait for their answer, or ``rate`` a second.

    Attributes:
        clients: closed loop: how many there are; they join one after the other in the ramp.
        rate: open loop: requests a second on average, at the times of a Poisson process,
            whatever the server is doing. One of the two is None.
        ramp_s: how long the load runs before the measurement begins.
        seconds: how long the measurement lasts at most. What is not finished then is cut off.
        answers: closed loop: after how many answers it ends; None: only the seconds end it.
    """

    clients: int | None
    rate: float | None
    ramp_s: float
    seconds: float
    answers: int | None = None

    def __str__(self) -> str:
        return f"{self.clients} clients" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class Run:
    """All answers of a load; what came from ``start`` to ``end`` counts for throughput."""

    answers: list[Answer]
    start: float
    end: float


class Sender(Protocol):
    """What sends jobs: `benchmarks.harness.client.Client`, or something in its place."""

    async def send(self, job: Any, answers: list[Answer] | None = None) -> Answer:
        """See `Client.send`."""
        ...


async def run(client: Sender, load: Load, source: Iterator[Any]) -> Run:
    """Put a load on a server for as long as it says."""
    answers: list[Answer] = []
    source = islice(source, load.answers)
    begin = time.perf_counter()
    start = begin + load.ramp_s
    end = start + load.seconds
    arrivals = _open(load.rate) if load.rate is not None else _closed(load)
    with suppress(TimeoutError):
        async with asyncio.timeout(end - time.perf_counter()), asyncio.TaskGroup() as group:
            async for follow_up in arrivals:
                group.create_task(_client(client, source, answers, endless=follow_up))
            if load.answers is None:
                await asyncio.sleep(end - time.perf_counter())  # clients that came to an end
    return Run(answers, start, min(end, time.perf_counter()))


async def _client(
    client: Sender, source: Iterator[Any], answers: list[Answer], *, endless: bool
) -> None:
    for job in source:
        answer = await client.send(job, answers)
        if not endless:
            return
        if answer.failure is not None:
            await asyncio.sleep(0.1)  # a server that refuses must not be flooded


async def _closed(load: Load) -> AsyncIterator[bool]:
    assert load.clients is not None
    for _ in range(load.clients):
        yield True
        await asyncio.sleep(load.ramp_s / load.clients)


async def _open(rate: float) -> AsyncIterator[bool]:
    """Exponential gaps between arrivals; a late one does not delay those after it."""
    gaps = random.Random(_SEED)
    due = time.perf_counter()
    while True:
        due += gaps.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield False


async def at_once(
    items: Iterable[ItemT],
    clients: int,
    do: Callable[[ItemT], Awaitable[FoundT]],
    progress: str = "",
) -> list[FoundT]:
    """Do something with all items, by a number of clients that take one after the other.

    Args:
        items: taken when a client is free for the next one.
        clients: how many there are.
        do: what is done with one.
        progress: what was done with those that are counted every few seconds; "" tells nothing.

    Returns:
        What came of each, in the order of the items.
    """
    found: dict[int, FoundT] = {}
    numbered = enumerate(items)

    async def client() -> None:
        for number, item in numbered:
            found[number] = await do(item)

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            say(f"  {len(found)} {progress}")

    telling = asyncio.create_task(tell()) if progress else None
    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        if telling is not None:
            telling.cancel()
    return [found[number] for number in sorted(found)]
