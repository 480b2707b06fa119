"""How soon the rows of a client that goes away are free."""

from __future__ import annotations

import time

import httpx

from benchmarks.reliability.tasks import idle, loads


async def leave(address: str, count: int) -> list[float]:
    """Seconds from a client's leaving to its rows being free, as another client sees it.

    The other one asks for the replica's own numbers without a pause, so each figure includes the
    time of one or two such requests (some 10 ms each).
    """
    message = {"role": "user", "content": "Tell me everything."}
    config = {"do_sample": True, "temperature": 100.0, "top_k": 0, "max_new_tokens": 1900}
    task = {"model": "demo", "messages": [message], "generation_config": config}
    found: list[float] = []
    async with (
        httpx.AsyncClient(base_url=address, timeout=60) as observer,
        httpx.AsyncClient(base_url=address, timeout=60) as leaver,
    ):
        for seed in range(count):
            await idle(observer)
            asked = task | {"seed": seed}
            async with leaver.stream("POST", "/v1/tasks?stream=true", json=asked) as response:
                await anext(response.aiter_bytes())
                was_running = await _is_running(observer)
                left = time.monotonic()
            while await _is_running(observer):
                pass
            if was_running:  # else it had ended already
                found.append(time.monotonic() - left)
    return found


async def _is_running(http: httpx.AsyncClient) -> bool:
    return any(load["running"] for load in await loads(http))
