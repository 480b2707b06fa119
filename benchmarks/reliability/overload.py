"""Ten times more than a server can do, for a minute: ``python -m benchmarks.reliability.overload``.

Serves a model by a real ``serve run``. First its capacity is measured: clients that send one task
after another. Then tasks are sent at ten times that rate whatever becomes of them, as strangers
would send them. In the end single tasks tell when the server is its old self. Prints how many tasks
were answered a second, how soon the others were refused, how long recovery took, and who had the
machine meanwhile; writes ``overload.json`` and, with matplotlib, ``overload.png``.

The demo model answers in milliseconds, so that ten times its capacity is hundreds of requests a
second: a test of the server in front of the engine. ``--geometry qwen2.5-0.5b --waiting 4`` has
random weights in the shape of a real model: its tasks take seconds, and ten times its capacity is
tens of requests a second, as with models that people use.

The clients run on the same machine and take time from the server, at the same priority. With
``--pin`` the engine has the first core to itself, and all others share the rest. Exits with 1 if
goodput was more than 10 % below the capacity, a refusal in a hundred took more than 100 ms,
recovery took more than 5 s, or anything was answered but an answer (the right one) or 503 with
Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from benchmarks.engine.report import say
from benchmarks.harness.served_model import DEMO as DEMO_GEOMETRY
from benchmarks.harness.served_model import geometry_names, make_model
from benchmarks.harness.server import DEMO, TUNED, Server, serving
from benchmarks.reliability.flood import (
    Sender,
    closed_loop,
    demo_tasks,
    open_loop,
    random_tasks,
    recovery,
)
from benchmarks.reliability.overload_report import Busy, Found, Work, answers_per_second

_SAMPLE_EVERY_S = 0.5


async def measure(
    server: Server, tasks: list[dict[str, Any]], options: argparse.Namespace
) -> Found:
    """Capacity, flood, recovery."""
    async with aiohttp.ClientSession(
        server.address,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=300),
    ) as http:
        sender = Sender(http, tasks)
        await closed_loop(sender, 1, 3.0)  # whatever is slow the first time
        alone = await closed_loop(sender, 1, 5.0)
        usual = max(one.seconds for one in alone)
        until = options.capacity_seconds
        # Enough that none of the rows is ever empty, and not so many that some are refused.
        clients = options.sequences + options.waiting // 2
        work = {"at capacity": Work(), "in the flood": Work()}
        async with _watched(server, http, work["at capacity"]):
            busy = await closed_loop(sender, clients, until)
        capacity = answers_per_second(busy, until)
        rate = options.times * capacity
        say(f"capacity {capacity:.1f} tasks/s; now {rate:.0f} tasks/s for {options.seconds:g} s")
        async with _watched(server, http, work["in the flood"]):
            requests = await open_loop(sender, rate, options.seconds)
        recovered = await recovery(sender, usual)
        flood = await asyncio.gather(*requests)
    return Found(usual, capacity, rate, options.seconds, flood, recovered, work)


@asynccontextmanager
async def _watched(server: Server, http: aiohttp.ClientSession, work: Work) -> AsyncIterator[None]:
    """Fill in who works while the body runs."""
    began, before = time.monotonic(), _cpu_seconds(server)
    watching = asyncio.create_task(_watch(http, work.engine))
    yield
    watching.cancel()
    after, seconds = _cpu_seconds(server), time.monotonic() - began
    work.cores = {part: (after[part] - before.get(part, 0.0)) / seconds for part in after}


async def _watch(http: aiohttp.ClientSession, engine: list[Busy]) -> None:
    """Ask the replica what it does, until cancelled. A question without an answer is left out."""
    start = time.monotonic()
    while True:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with http.get("/v1/models", raise_for_status=True) as response:
                (model,) = (await response.json())["data"]
            for replica in model["replicas"]:
                load = replica["load"]
                at = time.monotonic() - start
                engine.append(Busy(at, load["running_sequences"], load["waiting"]))
        await asyncio.sleep(_SAMPLE_EVERY_S)


def _cpu_seconds(server: Server) -> dict[str, float]:
    """Seconds that each part has computed for until now."""
    found: dict[str, float] = defaultdict(float)
    for process in [psutil.Process(), server.process, *server.process.children(recursive=True)]:
        with suppress(psutil.Error):  # it has gone meanwhile
            times = process.cpu_times()
            found[_part(process)] += times.user + times.system
    return found


def _part(process: psutil.Process) -> str:
    name = " ".join(process.cmdline()[:1])
    if process.pid == os.getpid():
        return "clients"
    if name.startswith("ray::ServeReplica:default:Model:"):
        return "engine"
    if name.startswith("ray::ServeReplica:default:Ingress"):
        return "ingress"
    return "proxy" if "haproxy" in name or "Proxy" in name else "rest of Ray"


def _step_back(server: Server) -> None:
    """Give the clients the niceness of the server's processes: Ray's are 15, and would starve."""
    me = psutil.Process()
    for process in server.process.children(recursive=True):
        with suppress(psutil.Error):  # it has gone meanwhile
            me.nice(max(me.nice(), process.nice()))


def _pin(server: Server) -> None:
    """The engine on the first core that we may use, everybody else on the others."""
    first, *others = sorted(os.sched_getaffinity(0))
    if not others:
        raise ValueError("--pin needs two cores")
    for process in [psutil.Process(), server.process, *server.process.children(recursive=True)]:
        with suppress(psutil.Error, ProcessLookupError):  # it has gone meanwhile
            cores = [first] if _part(process) == "engine" else others
            for thread in process.threads():  # each has its own; new ones inherit it
                os.sched_setaffinity(thread.id, cores)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    model = DEMO | {"engine": {"max_sequences": options.sequences, "max_waiting": options.waiting}}
    tasks = demo_tasks(pictures=options.pictures)
    with tempfile.TemporaryDirectory() as folder:
        if options.geometry != DEMO_GEOMETRY:
            served = make_model(options.geometry, None, options.model_dir or Path(folder, "model"))
            model |= {"source": served.source, "dtype": served.dtype}
            tasks = random_tasks(options.tokens)
        environment = TUNED if options.tuned else {}
        with serving({"models": [model]}, Path(folder), environment) as server:
            _step_back(server)
            if options.pin:
                _pin(server)
            found = asyncio.run(measure(server, tasks, options))
    say(found.table())
    for line in found.wrong[:10]:
        say(f"  {line[:200]}")
    _write(found, options)
    return 0 if found.good else 1


def _write(found: Found, options: argparse.Namespace) -> None:
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {
        name: value for name, value in vars(options).items() if isinstance(value, int | float | str)
    }
    data = {"settings": settings, **found.to_json()}
    (options.output / "overload.json").write_text(json.dumps(data, indent=1) + "\n")
    if not found.plot(options.output / "overload.png"):
        say("no picture: matplotlib is not installed (the extra `bench`)")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.reliability.overload"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=10.0, help="the capacity")
    parser.add_argument("--capacity-seconds", type=float, default=20.0)
    parser.add_argument("--sequences", type=int, default=16, help="max_sequences of the engine")
    parser.add_argument("--waiting", type=int, default=16, help="max_waiting of the engine")
    parser.add_argument("--geometry", choices=geometry_names(), default=DEMO_GEOMETRY)
    parser.add_argument("--tokens", type=int, default=16, help="of an answer of random weights")
    parser.add_argument("--model-dir", type=Path, help="keeps the random model for the next run")
    parser.add_argument("--tuned", action="store_true", help="Ray's HAProxy takes the requests")
    parser.add_argument("--pin", action="store_true", help="the engine has a core to itself")
    parser.add_argument("--pictures", action="store_true", help="a quarter of the tasks has one")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
