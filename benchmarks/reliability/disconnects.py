"""How soon the rows of a client that disconnects are free."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from benchmarks.harness.client import Answer, Client, Endpoint
from benchmarks.harness.tasks import LONG, demo_task

_IDLE_TIMEOUT_S = 60.0


async def idle(client: Client) -> list[dict[str, int]]:
    """The replicas' numbers, once none of them has anything to do.

    Raises:
        TimeoutError: something goes on though it was not asked for.
    """
    async with asyncio.timeout(_IDLE_TIMEOUT_S):
        while True:
            found = await client.loads()
            if not any(load["running"] or load["waiting"] for load in found):
                return found
            await asyncio.sleep(0.2)


async def disconnect(endpoint: Endpoint, count: int) -> list[float]:
    """Seconds from a client's disconnect to its rows being free, as another client sees it.

    The other one asks for the replica's own numbers without a pause, so each figure includes the
    time of one or two such requests (some 10 ms each).
    """
    found: list[float] = []
    async with Client(endpoint) as observer, Client(endpoint) as client:
        for seed in range(count):
            await idle(observer)
            task = demo_task(seed, "Tell me everything.", LONG | {"max_new_tokens": 1900})
            answers: list[Answer] = []
            streaming = asyncio.create_task(client.ask(task, stream=True, answers=answers))
            while not (answers and answers[0].lines):  # noqa: ASYNC110 (nothing else tells of it)
                await asyncio.sleep(0.001)
            was_running = await _is_running(observer)
            disconnected = time.monotonic()
            streaming.cancel()
            with suppress(asyncio.CancelledError):
                await streaming
            while await _is_running(observer):
                pass
            if was_running:  # else it had ended already
                found.append(time.monotonic() - disconnected)
    return found


async def _is_running(client: Client) -> bool:
    return any(load["running"] for load in await client.loads())
