"""What the graph adds to the engine: ``python -m benchmarks.serving --graph-cost``.

The same tasks for the demo model, from the same number of clients: given to an engine in a process
of its own (what is between them is one queue), and sent to ``/v1/tasks`` of the whole graph, in Ray
Serve's default mode and in the tuned one. They take turns.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import asdict
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine.report import aligned, say
from benchmarks.engine.worker import in_own_process
from benchmarks.harness.client import Answer, Client, Endpoint, Job
from benchmarks.harness.load import Load, run
from benchmarks.harness.metrics import Target, characters_per_token, summary, tokens_of
from benchmarks.harness.peers import GRAPH, PEERS, TUNED, Setup, graph_args
from benchmarks.harness.served_model import DEMO, make_model
from benchmarks.harness.server import Server
from benchmarks.serving.cpu_time import CLIENT, cpu_seconds
from benchmarks.serving.profile import profile
from engine import Engine
from schema.task import Task
from serve_app.config.app_args import AppArgs

ENGINE = "engine alone"
_TOKENS = 128
_CONTEXT = 256
_RAMP_S = 2.0
_TARGET = Target(1.0, 0.1)
# Draws from all tokens alike, so that the demo model's answers are long.
_LONG: dict[str, Any] = {
    "generation_config": {
        "do_sample": True,
        "temperature": 100.0,
        "top_k": 0,
        "max_new_tokens": _TOKENS,
    }
}


class _EngineClient:
    """Gives jobs to an engine in this process, in the form of `Client`."""

    def __init__(self, engine: Engine, endpoint: Endpoint) -> None:
        self._engine = engine
        self._endpoint = endpoint

    async def send(self, job: Job, answers: list[Answer] | None = None) -> Answer:
        """As `Client.send`."""
        task = Task.from_fields(**self._endpoint.body(job))
        answer = Answer(job, time.perf_counter())
        if answers is not None:
            answers.append(answer)
        async with aclosing(self._engine.stream(task)) as chunks:
            async for chunk in chunks:
                answer.lines.append((time.perf_counter(), chunk))
        answer.ended = time.perf_counter()
        return answer


def cost_jobs(stream: str) -> Iterator[Job]:
    """Endlessly many tasks with long answers."""
    for number in count(random.Random(stream).randrange(10_000)):
        yield Job(f"Count from {number % 50} to 99.", _TOKENS, seed=number)


def _measure_engine(
    args: dict[str, Any], endpoint: Endpoint, loads: Sequence[Load], file: str
) -> None:
    """Runs in a process of its own; writes the answers' summaries."""
    (model,) = AppArgs.model_validate(args).models
    engine = Engine(model.engine_config())
    client = _EngineClient(engine, endpoint)
    try:
        asyncio.run(client.send(next(cost_jobs(""))))
        found = [asyncio.run(_run(client, load, _own_cpu)) for load in loads]
    finally:
        engine.close()
    Path(file).write_text(json.dumps(found))


def _own_cpu() -> dict[str, float]:
    return {CLIENT: time.process_time()}


async def _run(
    client: Client | _EngineClient, load: Load, cpu: Callable[[], dict[str, float]]
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
        return [await _run(client, load, lambda: cpu_seconds(server.process)) for load in loads]


def measure_cost(
    folder: Path,
    clients: Sequence[int],
    seconds: float,
    rounds: int,
    out: Path,
    *,
    with_profile: bool,
) -> int:
    """Measure, print a table, write ``graph-cost.json``; returns the exit status."""
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
    loads = [Load(number, None, _RAMP_S, seconds) for number in clients]
    found: list[dict[str, Any]] = []

    def note(mode: str, round_index: int, summaries: Sequence[dict[str, Any]]) -> None:
        for load, one in zip(loads, summaries, strict=True):
            found.append({"mode": mode, "clients": load.clients, "round": round_index, **one})
            say(f"round {round_index + 1} of {rounds}, {mode}, {load}: done")

    for round_index in range(rounds):
        file = folder / "engine.json"
        endpoint = Endpoint("", name, "tasks", _LONG)
        in_own_process(_measure_engine, args, endpoint, loads, str(file))
        note(ENGINE, round_index, json.loads(file.read_text()))
        for mode in (GRAPH, TUNED):
            with PEERS[mode].start(setup) as server:
                endpoint = Endpoint(server.address, name, "tasks", _LONG)
                note(mode, round_index, asyncio.run(_through_graph(server, endpoint, loads)))
                if with_profile and round_index == 0:
                    _profile(server, endpoint, mode, max(clients), out)
    print(cost_table(found, clients))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "graph-cost.json"
    path.write_text(json.dumps({"benchmark": "graph-cost", "runs": found}, indent=1) + "\n")
    print("written:", path)
    return 0


def _profile(server: Server, endpoint: Endpoint, mode: str, clients: int, out: Path) -> None:
    """Profiles of ingress and replica while so many clients are served."""
    model = next(iter(server.replicas("Model:" + endpoint.model + ":float32")), None)
    ingress = next(iter(server.replicas("Ingress")), None)
    processes = {"ingress": ingress, "replica": model}
    label = mode.replace(", ", "-").replace(" ", "-")
    files = {
        out / f"profile-{label}-{name}.txt": process.pid
        for name, process in processes.items()
        if process is not None
    }

    async def loaded(seconds: float) -> None:
        async with Client(endpoint) as client:
            await run(client, Load(clients, None, _RAMP_S, seconds), cost_jobs("profile"))

    profile(files, lambda seconds: asyncio.run(loaded(seconds)))


def _replica(row: dict[str, Any]) -> float:
    return float(row["cpu"].get("replica", 0.0))


def _ingress(row: dict[str, Any]) -> float:
    return float(row["cpu"].get("ingress", 0.0))


def _all(row: dict[str, Any]) -> float:
    return float(sum(row["cpu"].values()))


def cost_table(found: Sequence[dict[str, Any]], clients: Sequence[int]) -> str:
    """Medians over rounds, and what the graph adds to the engine."""

    def middle(mode: str, number: int, value: Callable[[dict[str, Any]], float | None]) -> float:
        rows = [row for row in found if (row["mode"], row["clients"]) == (mode, number)]
        return median(value(row) or 0.0 for row in rows)

    lines = [["clients", "", "first token", "added", "each further", "added", "tokens/s", "lost"]]
    lines[0].append("CPU for a token: replica (or engine), ingress, all")
    for number in clients:
        alone: list[float] = []
        for mode in dict.fromkeys(row["mode"] for row in found):
            first = middle(mode, number, lambda row: row["first_token"]["p50"])
            each = middle(mode, number, lambda row: row["per_token"]["p50"])
            speed = middle(mode, number, lambda row: row["tokens_per_s"])
            alone = alone or [first, each, speed]
            graph = mode != ENGINE
            lines.append(
                [
                    str(number),
                    mode,
                    f"{first * 1e3:.2f} ms",
                    f"{(first - alone[0]) * 1e3:+.2f} ms" if graph else "",
                    f"{each * 1e3:.3f} ms",
                    f"{(each - alone[1]) * 1e3:+.3f} ms" if graph else "",
                    f"{speed:.0f}",
                    f"{1 - speed / alone[2]:.1%}" if graph else "",
                    ", ".join(
                        f"{middle(mode, number, part) * 1e6:.0f} us"
                        for part in ((_replica, _ingress, _all) if graph else (_all,))
                    ),
                ]
            )
    return aligned(lines, names=1)
