"""What the host's work of a replica costs: ``python -m benchmarks.serving.replica_cost``.

The whole graph, with real engines whose decode forwards sleep instead of computing: the step, the
choice of tokens, their text and the chunks are all that is left, as beside a GPU. The vocabulary is
the demo model's, so that sampling costs its calls rather than its arithmetic, which a GPU has.
Processor time, which other work on the machine changes less than it changes times by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.harness import command
from benchmarks.harness.client import Client, Endpoint
from benchmarks.harness.processes import cpu_spent
from benchmarks.harness.report import aligned
from benchmarks.harness.server import DEMO, TUNED, Server, serving
from benchmarks.serving.instant import LOOP_S, STEP_S

_PARTS = ("replica", "its event loop", "ingress", "proxy")
_SETTLE_S = 3.0
_TOKENS = 1500  # of an answer, which the context holds
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "sampled": {"do_sample": True, "temperature": 0.7, "top_k": 40, "top_p": 0.9},
}


async def _stream_on(server: Server, clients: int, settings: Mapping[str, Any]) -> None:
    """Clients that read their streams to the end and begin another, until this is cancelled."""
    seeds = itertools.count()
    url = f"{server.address}/v1/tasks?stream=true"

    async def client(http: aiohttp.ClientSession) -> None:
        while True:
            body = {
                "model": DEMO["id"],
                "messages": [{"role": "user", "content": "Go on."}],
                "generation_config": {"max_new_tokens": _TOKENS, **settings},
                "seed": next(seeds),
            }
            async with http.post(url, json=body) as response:
                response.raise_for_status()
                async for _ in response.content.iter_any():
                    pass

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))


async def _load(server: Server) -> Mapping[str, float]:
    """What the replica says of itself."""
    async with Client(Endpoint(server.address, DEMO["id"])) as client:
        (load,) = await client.loads()
    return load


async def _measure(
    server: Server, clients: int, settings: Mapping[str, Any], seconds: float
) -> list[str]:
    running = asyncio.create_task(_stream_on(server, clients, settings))
    await asyncio.sleep(_SETTLE_S)
    before = await _load(server)
    with cpu_spent(server) as busy:
        await asyncio.wait({running}, timeout=seconds)
    after = await _load(server)
    tokens = after["generated_tokens"] - before["generated_tokens"]
    busy["its event loop"] = after[LOOP_S] - before[LOOP_S]
    running.cancel()
    await asyncio.wait({running})
    await asyncio.sleep(_SETTLE_S)
    rate = tokens / busy["seconds"]
    own = [f"{busy[part] / tokens * 1e6:.0f} us" for part in _PARTS]
    return [f"{rate:.0f}", *own, f"{busy['replica'] / busy['seconds']:.0%}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = command.parser("benchmarks.serving.replica_cost", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--clients", type=command.numbers(int), default=[1, 16, 64])
    add("--seconds", type=float, default=10.0)
    add("--step-ms", type=float, default=10.0, help="the least time from one step to the next")
    options = parser.parse_args(arguments)
    command.end_with_servers()
    engine = {"max_sequences": max(options.clients), "threads": 1, "speculation": "off"}
    engine["kv_cache_tokens"] = 2048 * max(options.clients)
    lines = [["clients", "tasks", "tokens/s", *_PARTS, "replica: of a core"]]
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        serving(
            {"models": [{**DEMO, "engine": engine}]},
            Path(folder),
            {STEP_S: str(options.step_ms / 1e3), **TUNED},
            import_path="benchmarks.serving.instant:build",
        ) as server,
    ):
        for clients in options.clients:
            for name, settings in SETTINGS.items():
                found = asyncio.run(_measure(server, clients, settings, options.seconds))
                lines.append([str(clients), name, *found])
    print(aligned(lines, names=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
