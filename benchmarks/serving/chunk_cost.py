"""What a chunk costs each process: ``python -m benchmarks.serving.chunk_cost``.

The whole graph, in front of an engine that computes nothing: at every step each stream gets a
token. So what ingress and replica take is the cost of passing it on, Ray's part included; what they
take without any stream is subtracted. Processor time, which other work on the machine changes less
than it changes times by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.harness import command
from benchmarks.harness.client import Endpoint, Job
from benchmarks.harness.processes import cpu_spent
from benchmarks.harness.report import aligned
from benchmarks.harness.server import DEMO, TUNED, Server, serving
from benchmarks.serving.graph_cost import profile_graph
from benchmarks.serving.paced import STEP_S

_PARTS = ("replica", "ingress", "proxy")
_SETTLE_S = 3.0


class _Streams:
    """Clients that read their streams to the end and begin another.

    Attributes:
        chunks: that have come.
    """

    def __init__(self, endpoint: Endpoint, number: int) -> None:
        self._endpoint, self._number = endpoint, number
        self.chunks = 0

    async def run(self) -> None:
        """Read until this is cancelled."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await asyncio.gather(*(self._client(http) for _ in range(self._number)))

    async def _client(self, http: aiohttp.ClientSession) -> None:
        body = self._endpoint.body(Job("Go on.", 100_000))
        url = f"{self._endpoint.address}/v1/tasks?stream=true"
        while True:
            async with http.post(url, json=body) as response:
                response.raise_for_status()
                async for part in response.content.iter_any():
                    self.chunks += part.count(b"\n\n")


async def _measure(server: Server, endpoint: Endpoint, clients: int, seconds: float) -> list[str]:
    await asyncio.sleep(_SETTLE_S)
    with cpu_spent(server) as idle:
        await asyncio.sleep(seconds)
    streams = _Streams(endpoint, clients)
    running = asyncio.create_task(streams.run())
    await asyncio.sleep(_SETTLE_S)
    begun = streams.chunks
    with cpu_spent(server) as busy:
        await asyncio.wait({running}, timeout=seconds)
    chunks = streams.chunks - begun
    running.cancel()
    await asyncio.wait({running})
    rate = chunks / busy["seconds"]
    own = [busy[part] / busy["seconds"] - idle[part] / idle["seconds"] for part in _PARTS]
    return [str(clients), f"{rate:.0f}", *(f"{each / rate * 1e6:.0f} us" for each in own)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table."""
    parser = command.parser("benchmarks.serving.chunk_cost", __doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--clients", type=command.numbers(int), default=[1, 16, 64])
    add("--seconds", type=float, default=10.0)
    add("--step-ms", type=float, default=20.0, help="from one token of a stream to the next")
    add("--profile", action="store_true", help="py-spy of ingress and replica, of the last load")
    add("--plain", action="store_true", help="the plain mode")
    options = parser.parse_args(arguments)
    command.end_with_servers()
    model: dict[str, Any] = {**DEMO, "engine": {"max_sequences": max(options.clients)}}
    environment = {STEP_S: str(options.step_ms / 1e3)} | ({} if options.plain else TUNED)
    lines = [["clients", "chunks/s", *_PARTS]]
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        serving(
            {"models": [model]},
            Path(folder),
            environment,
            import_path="benchmarks.serving.paced:build",
        ) as server,
    ):
        endpoint = Endpoint(server.address, DEMO["id"], "tasks")
        for clients in options.clients:
            lines.append(asyncio.run(_measure(server, endpoint, clients, options.seconds)))
        print(aligned(lines, names=0))
        if options.profile:
            mode = "plain" if options.plain else "tuned"
            profile_graph(server, endpoint, f"chunks-{mode}", max(options.clients), options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
