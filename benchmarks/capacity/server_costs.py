"""What tasks cost the parts of a real server that serves the demo model, and what clients see."""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
import numpy as np

from benchmarks.capacity.costs import Mode, ModeCosts, Stage
from benchmarks.capacity.cpu import Spent, read
from benchmarks.capacity.pictures import picture_base64
from benchmarks.engine.report import say
from benchmarks.harness.server import DEMO, TUNED, Server, free_port, serving

PARTS = ("proxy", "ingress", "replica")
_IDLE_S = 4.0
_SETTLE_S = 1.0
_CLIENTS = 8
_LONG = {"do_sample": True, "temperature": 100.0, "top_k": 0}


@dataclass(frozen=True)
class Kind:
    """Tasks of one kind: how many are sent, how long their answers are."""

    count: int
    tokens: int
    stream: bool
    picture: bool = False


KINDS = {
    "short": Kind(100, 4, stream=True),
    "long": Kind(20, 128, stream=True),
    "whole": Kind(48, 16, stream=False),
    "picture": Kind(16, 4, stream=True, picture=True),
}
_POINT = Kind(0, 48, stream=True)
_POINT_S = 12.0
_RATES = {1: (1.0, 2.5), 2: (2.0, 4.0)}  # tasks a second, by the number of replicas


@dataclass(frozen=True)
class Seen:
    """What a client saw of one task; seconds since it was sent."""

    first: float
    ended: float
    chunks: int
    tokens: int


async def send(http: aiohttp.ClientSession, body: dict[str, Any], *, stream: bool) -> Seen:
    """Send a task, count its events.

    Raises:
        RuntimeError: it was not answered.
    """
    began, first, chunks, last = time.perf_counter(), 0.0, 0, b""
    async with http.post(f"/v1/tasks{'?stream=true' if stream else ''}", json=body) as response:
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {(await response.text())[:500]}")
        if not stream:
            answer = await response.json()
            ended = time.perf_counter() - began
            return Seen(ended, ended, 1, answer["usage"]["completion_tokens"])
        async for line in response.content:
            if line.startswith(b"data: {"):
                chunks += 1
                first = first or time.perf_counter() - began
                last = line
    usage = last.rpartition(b'"completion_tokens":')[2]
    tokens = int(usage.split(b",")[0].split(b"}")[0])
    return Seen(first, time.perf_counter() - began, chunks, tokens)


def body_of(kind: Kind, number: int) -> dict[str, Any]:
    """A task of a kind; its answer does not end early but by chance."""
    content: Any = f"Count from {number % 50} to 99."
    if kind.picture:
        picture = {"type": "image", "base64": picture_base64(number)}
        content = [picture, {"type": "text", "text": "What is it?"}]
    return {
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "generation_config": _LONG | {"max_new_tokens": kind.tokens},
        "seed": number,
    }


async def _all(address: str, kind: Kind, *, count: int | None = None) -> list[Seen]:
    """All tasks of a kind, some at a time."""
    places = asyncio.Semaphore(_CLIENTS)
    bodies = [body_of(kind, number) for number in range(count or kind.count)]
    async with _session(address) as http:

        async def placed(body: dict[str, Any]) -> Seen:
            async with places:
                return await send(http, body, stream=kind.stream)

        return list(await asyncio.gather(*map(placed, bodies)))


@asynccontextmanager
async def _session(address: str) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(address, timeout=timeout, connector=connector) as http:
        yield http


async def _poisson(address: str, kind: Kind, rate: float, seconds: float) -> list[Seen]:
    """Tasks at random times, whatever the server is doing; all are waited for."""
    chance = random.Random(1)
    tasks: list[asyncio.Task[Seen]] = []
    until = time.perf_counter() + seconds
    async with _session(address) as http, asyncio.TaskGroup() as group:
        while time.perf_counter() < until:
            await asyncio.sleep(chance.expovariate(rate))
            body = body_of(kind, len(tasks))
            tasks.append(group.create_task(send(http, body, stream=True)))
    return [task.result() for task in tasks]


def measure_server(mode: Mode, replicas: int) -> Iterator[tuple[str, Any]]:
    """Start a server, yield what it costs (of one replica only), then its points, by name."""
    with _server(mode, replicas) as server:
        for kind in KINDS.values():  # whatever is slow only once
            asyncio.run(_all(server.address, kind, count=_CLIENTS // 2))
        if replicas == 1:
            raw = _spent(server, mode)
            stages = {part: stage_of(raw, part) for part in PARTS}
            costs = ModeCosts(**stages, health=0.0)
            yield f"server-{mode}", {"costs": asdict(costs), "raw": raw}
        points = [_point(server, mode, replicas, rate) for rate in _RATES[replicas]]
        yield f"points-{mode}-{replicas}", points


def _spent(server: Server, mode: Mode) -> dict[str, Any]:
    """CPU seconds of all parts while nothing happens, and for tasks of each kind."""
    raw: dict[str, Any] = {}
    time.sleep(_SETTLE_S)
    first = read(server.process)
    time.sleep(_IDLE_S)
    idle = Spent.between(first, read(server.process))
    rates = {part: cpu / idle.seconds for part, cpu in idle.cpu.items()}
    raw["idle, CPU s/s"] = rates
    for name, kind in KINDS.items():
        first = read(server.process)
        seen = asyncio.run(_all(server.address, kind))
        spent = Spent.between(first, read(server.process))
        raw[name] = {
            "tasks": len(seen),
            "chunks": sum(one.chunks for one in seen),
            "tokens": sum(one.tokens for one in seen),
            "seconds": spent.seconds,
            "cpu": {
                part: cpu - rates.get(part, 0.0) * spent.seconds for part, cpu in spent.cpu.items()
            },
            "waited": spent.waited,
        }
        say(f"{mode}, {name}: {spent.seconds:.1f} s")
    return raw


def stage_of(raw: dict[str, Any], part: str) -> Stage:
    """Solve for the costs of a part: short and long answers differ in their chunks."""
    rows = np.array([[raw[kind]["tasks"], raw[kind]["chunks"]] for kind in ("short", "long")])
    spent = np.array([raw[kind]["cpu"].get(part, 0.0) for kind in ("short", "long")])
    task, chunk = (float(cost) for cost in np.linalg.solve(rows, spent))
    picture, whole = raw["picture"], raw["whole"]
    text = task * picture["tasks"] + chunk * picture["chunks"]
    further = (picture["cpu"].get(part, 0.0) - text) / picture["tasks"]
    return Stage(
        task=max(0.0, task),
        chunk=max(0.0, chunk),
        whole=whole["cpu"].get(part, 0.0) / whole["tasks"],
        picture=max(0.0, further),
    )


def _point(server: Server, mode: Mode, replicas: int, rate: float) -> dict[str, Any]:
    """An open loop of so many tasks a second, on average."""
    first = read(server.process)
    seen = asyncio.run(_poisson(server.address, _POINT, rate, _POINT_S))
    spent = Spent.between(first, read(server.process))
    times = sorted(one.first for one in seen)
    say(f"{mode}, {replicas} replicas, {rate:g} tasks/s: done")
    return {
        "mode": mode,
        "replicas": replicas,
        "rate": len(seen) / spent.seconds,
        "tokens": _POINT.tokens,
        "seconds": spent.seconds,
        "tasks": len(seen),
        "tokens_told": sum(one.tokens for one in seen),
        "chunks": sum(one.chunks for one in seen),
        "first_token_p50_s": median(times),
        "first_token_p95_s": times[int(0.95 * len(times))],
        "task_p50_s": median(one.ended for one in seen),
        "cpu_s": spent.cpu,
        "waited_s": spent.waited,
    }


def _free_ports() -> dict[str, str]:
    """HAProxy's own ports, which are fixed otherwise: another server may run on this machine."""
    names = ("RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_HAPROXY_METRICS_PORT")
    return {name: str(free_port()) for name in names}


@contextmanager
def _server(mode: Mode, replicas: int) -> Iterator[Server]:
    """A server of the demo model that ends with the body."""
    fields = {"min_replicas": replicas, "max_replicas": replicas, "engine": {"threads": 1}}
    environment = TUNED | _free_ports() if mode == "tuned" else {}
    args = {"models": [DEMO | fields]}
    with (
        tempfile.TemporaryDirectory(prefix="capacity-") as folder,
        serving(args, Path(folder), environment) as server,
    ):
        yield server
