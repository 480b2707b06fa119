"""What the graph adds to the engine: ``python -m benchmarks.serving --graph-cost``.

The same tasks for the demo model, from the same number of clients: given to an engine in a process
of its own (what is between them is one queue), and sent to ``/v1/tasks`` of the whole graph, in Ray
Serve's plain mode and in the tuned one. They take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.harness.client import Client, Endpoint, Job
from benchmarks.harness.engine_api import Engine, EngineClient
from benchmarks.harness.load import Load, run
from benchmarks.harness.metrics import Target, characters_per_token, summary, tokens_of
from benchmarks.harness.peers import GRAPH, PEERS, TUNED, Setup, graph_args
from benchmarks.harness.processes import CLIENT, cpu_seconds, in_own_process
from benchmarks.harness.report import about, grouped, middle, say, table, write
from benchmarks.harness.served_models import DEMO, make_model
from benchmarks.harness.server import Server
from benchmarks.harness.tasks import LONG
from benchmarks.serving.profile import profile_server
from serve_app.config.app_args import AppArgs

ENGINE = "engine alone"
_TOKENS = 128
_CONTEXT = 256
_RAMP_S = 2.0
_TARGET = Target(1.0, 0.1)
_EXTRA: dict[str, Any] = {"generation_config": LONG | {"max_new_tokens": _TOKENS}}


def cost_jobs(stream: str) -> Iterator[Job]:
    """Endlessly many tasks with long answers."""
    for number in count(random.Random(stream).randrange(10_000)):
        yield Job(f"Count from {number % 50} to 99.", _TOKENS, seed=number)


def _measure_engine(
    args: dict[str, Any], endpoint: Endpoint, loads: Sequence[Load]
) -> list[dict[str, Any]]:
    """Runs in its own process; the answers' summaries."""
    (model,) = AppArgs.model_validate(args).models
    engine = Engine(model.engine_config())
    client = EngineClient(engine, endpoint)
    try:
        asyncio.run(client.send(next(cost_jobs(""))))
        return [asyncio.run(_run(client, load, _own_cpu)) for load in loads]
    finally:
        engine.close()


def _own_cpu() -> dict[str, float]:
    return {CLIENT: time.process_time()}


async def _run(
    client: Client | EngineClient, load: Load, cpu: Callable[[], dict[str, float]]
) -> dict[str, Any]:
    """The summary of a load, and ``cpu``: seconds of processor time a token, by process."""
    before = cpu()
    result = await run(client, load, cost_jobs(str(load)))
    taken = {name: seconds - before.get(name, 0.0) for name, seconds in cpu().items()}
    each = characters_per_token(result.answers)
    tokens = sum(count for answer in result.answers for _, count in tokens_of(answer, each))
    found = asdict(summary(result, _TARGET))
    return found | {"cpu": {name: seconds / tokens for name, seconds in taken.items()}}


async def _through_graph(server: Server, endpoint: Endpoint, loads: Sequence[Load]) -> list[Any]:
    async with Client(endpoint) as client:
        await client.send(next(cost_jobs("")))
        return [await _run(client, load, lambda: cpu_seconds(server)) for load in loads]


def measure_cost(folder: Path, options: argparse.Namespace) -> int:
    """Measure, print a table, write ``graph-cost.json``; returns the exit status."""
    clients, rounds = options.clients, options.rounds
    setup = Setup(
        model=make_model(DEMO, None, folder),
        folder=folder,
        threads=1,
        max_clients=max(clients),
        context=_CONTEXT,
        vllm_python=None,
        on_gpu=False,
    )
    args = graph_args(setup)
    name = args["models"][0]["id"]
    loads = [Load(number, None, _RAMP_S, options.seconds) for number in clients]
    found: list[dict[str, Any]] = []

    def note(mode: str, round_index: int, summaries: Sequence[dict[str, Any]]) -> None:
        for load, one in zip(loads, summaries, strict=True):
            found.append({"mode": mode, "clients": load.clients, "round": round_index, **one})
            say(f"round {round_index + 1} of {rounds}, {mode}, {load}: done")

    for round_index in range(rounds):
        endpoint = Endpoint("", name, "tasks", _EXTRA)
        note(ENGINE, round_index, in_own_process(_measure_engine, args, endpoint, loads))
        for mode in (GRAPH, TUNED):
            with PEERS[mode].start(setup) as server:
                endpoint = Endpoint(server.address, name, "tasks", _EXTRA)
                note(mode, round_index, asyncio.run(_through_graph(server, endpoint, loads)))
                if options.profile and round_index == 0:
                    profile_graph(server, endpoint, mode, max(clients), options.out)
    print(cost_table(found))
    write(options.out, "graph-cost", about("graph-cost", options) | {"runs": found})
    return 0


def profile_graph(server: Server, endpoint: Endpoint, mode: str, clients: int, out: Path) -> None:
    """Profiles of ingress and replica while so many clients are served."""

    async def loaded(seconds: float) -> None:
        async with Client(endpoint) as client:
            await run(client, Load(clients, None, _RAMP_S, seconds), cost_jobs("profile"))

    profile_server(server, mode, out, lambda seconds: asyncio.run(loaded(seconds)))


def cost_table(found: Sequence[dict[str, Any]]) -> str:
    """Medians over rounds, and what the graph adds to the engine."""
    lines = []
    for number, own in sorted(grouped(found, lambda row: row["clients"]).items()):
        alone: dict[str, float] = {}
        for mode, rows in grouped(own, lambda row: row["mode"]).items():
            values = {name: middle(rows, value) for name, value in _VALUES.items()}
            alone = alone or values
            lines.append({"clients": number, "mode": mode, **values, "alone": alone})
    return table(lines, _COLUMNS, names=1)


_VALUES: dict[str, Callable[[dict[str, Any]], float]] = {
    "first": lambda row: row["first_token"]["p50"] or 0.0,
    "each": lambda row: row["per_token"]["p50"] or 0.0,
    "speed": lambda row: row["tokens_per_s"],
    "replica": lambda row: row["cpu"].get("replica", 0.0),
    "ingress": lambda row: row["cpu"].get("ingress", 0.0),
    "all": lambda row: sum(row["cpu"].values()),
}


def _added(name: str, show: Callable[[float, float], str]) -> Callable[[dict[str, Any]], str]:
    """Shows a value beside that of the engine alone."""
    return lambda row: "" if row["mode"] == ENGINE else show(row[name], row["alone"][name])


def _cpu(row: dict[str, Any]) -> str:
    parts = ("all",) if row["mode"] == ENGINE else ("replica", "ingress", "all")
    return ", ".join(f"{row[part] * 1e6:.0f} us" for part in parts)


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "clients": lambda row: str(row["clients"]),
    "": lambda row: row["mode"],
    "first token": lambda row: f"{row['first'] * 1e3:.2f} ms",
    "first added": _added("first", lambda own, alone: f"{(own - alone) * 1e3:+.2f} ms"),
    "each further": lambda row: f"{row['each'] * 1e3:.3f} ms",
    "each added": _added("each", lambda own, alone: f"{(own - alone) * 1e3:+.3f} ms"),
    "tokens/s": lambda row: f"{row['speed']:.0f}",
    "lost": _added("speed", lambda own, alone: f"{1 - own / alone:.1%}"),
    "CPU for a token: replica (or engine), ingress, all": _cpu,
}
