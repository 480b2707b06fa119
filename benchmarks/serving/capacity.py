"""What tasks cost each part of the graph: ``python -m benchmarks.serving.capacity``.

Serves the demo model in both modes of Ray Serve and takes the processor time of proxy, ingress and
replica for streamed tasks with short and long answers, and for tasks that are not streamed. Two
lengths give the cost of a task and of each message. From them follows for how many replicas one
process of a part is enough, if each replica ends so many tasks a second (``--tasks-per-s``). Then
Ray's controller is watched with few and with many replicas that do nothing.

Prints tables; writes ``capacity.json``. It takes about five minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import command
from benchmarks.harness.client import Answer, Client, Endpoint
from benchmarks.harness.load import at_once
from benchmarks.harness.peers import ECHO_PATH
from benchmarks.harness.processes import cpu_spent
from benchmarks.harness.report import about, aligned, say, table, write
from benchmarks.harness.server import DEMO, DEMO_DEPLOYMENT, TUNED, Server, serving
from benchmarks.harness.tasks import LONG, demo_task
from serve_app.config.ray_options import AUTOSCALING, HEALTH

MODES: dict[str, dict[str, str]] = {"default": {}, "tuned": TUNED}
PARTS = ("proxy", "ingress", "replica")
LOAD = 0.7
"""Of the tasks that a replica can end."""
ANSWER_TOKENS = 128
HAPROXY_THREADS = 4  # RAY_SERVE_HAPROXY_NBTHREAD

_CLIENTS = 8
_SETTLE_S = 2.0
_IDLE_S = 8.0
_REPLICAS = ((1, False), (14, False), (14, True))  # of the controller; whether they may scale


@dataclass(frozen=True)
class Kind:
    """Tasks of one kind: how many are sent, how long their answers are."""

    count: int
    tokens: int
    stream: bool = True


KINDS = {"short": Kind(100, 4), "long": Kind(20, 128), "whole": Kind(48, 16, stream=False)}


@dataclass(frozen=True)
class Spent:
    """What all tasks of a kind took: processor seconds by part, beside what it takes when idle."""

    tasks: int
    messages: int
    cpu: Mapping[str, float]


@dataclass(frozen=True)
class Cost:
    """Processor seconds of a part: for a streamed task, for each of its messages, for a task that
    is not streamed.
    """

    task: float
    message: float
    whole: float

    def of(self, messages: int | None) -> float:
        """Of one task; None is an answer that is not streamed."""
        return self.whole if messages is None else self.task + messages * self.message


def solve(spent: Mapping[str, Spent], part: str) -> Cost:
    """Short and long answers differ in their messages."""
    streamed = [spent["short"], spent["long"]]
    counts = np.array([[one.tasks, one.messages] for one in streamed])
    taken = np.array([one.cpu.get(part, 0.0) for one in streamed])
    task, message = (max(0.0, float(cost)) for cost in np.linalg.solve(counts, taken))
    return Cost(task, message, spent["whole"].cpu.get(part, 0.0) / spent["whole"].tasks)


def replicas_for_one(cost: Cost, tasks_per_s: float, messages: int | None, threads: int) -> float:
    """For how many replicas, each with so many tasks a second, a process of this part is enough."""
    return threads / (tasks_per_s * cost.of(messages))


# --- Tasks ---------------------------------------------------------------------------------------


def measure_mode(mode: str) -> dict[str, Cost]:
    """The costs of all parts in one mode."""
    one_thread = DEMO | {"engine": {"threads": 1}}
    with serving({"models": [one_thread]}, environment=MODES[mode]) as server:
        for kind in KINDS.values():  # whatever is slow only once
            asyncio.run(_send(server, Kind(_CLIENTS // 2, kind.tokens, kind.stream)))
        time.sleep(_SETTLE_S)
        with cpu_spent(server) as idle:
            time.sleep(_IDLE_S)
        spent = {}
        for name, kind in KINDS.items():
            spent[name] = _measure_kind(server, kind, idle)
            say(f"{mode}, {name}: done")
    return {part: solve(spent, part) for part in PARTS}


def _measure_kind(server: Server, kind: Kind, idle: Mapping[str, float]) -> Spent:
    (replica,) = server.replicas(DEMO_DEPLOYMENT)
    before = _threads(replica)
    with cpu_spent(server) as taken:
        answers = asyncio.run(_send(server, kind))
    after = _threads(replica)
    # The engine is the thread of the replica that works most; it is not the graph's.
    taken["replica"] -= max(after[one] - before.get(one, 0.0) for one in after)
    rest = {
        part: taken[part] - idle.get(part, 0.0) / idle["seconds"] * taken["seconds"]
        for part in PARTS
    }
    return Spent(len(answers), sum(len(answer.events) for answer in answers), rest)


def _threads(process: psutil.Process) -> dict[int, float]:
    return {one.id: one.user_time + one.system_time for one in process.threads()}


async def _send(server: Server, kind: Kind) -> list[Answer]:
    """All tasks of a kind, some at a time.

    Raises:
        RuntimeError: one was not answered.
    """
    config = LONG | {"max_new_tokens": kind.tokens}
    tasks = [demo_task(n, f"Count from {n % 50} to 99.", config) for n in range(kind.count)]
    async with Client(Endpoint(server.address, "demo")) as client:
        answers = await at_once(tasks, _CLIENTS, partial(client.ask, stream=kind.stream))
    if errors := [answer.error for answer in answers if not answer.complete]:
        raise RuntimeError(errors[0])
    return answers


# --- The controller ------------------------------------------------------------------------------


def measure_controller(replicas: int, *, scaling: bool) -> float:
    """Its processor seconds a second, with replicas that do nothing but answer its messages."""
    echo: dict[str, Any] = {"name": "Echo", "ray_actor_options": {"num_cpus": 0.001}, **HEALTH}
    if scaling:
        limits = {"min_replicas": replicas, "max_replicas": replicas + 1}
        echo["autoscaling_config"] = limits | {"initial_replicas": replicas} | AUTOSCALING
    else:
        echo["num_replicas"] = replicas
    with serving({}, deployments=[echo], import_path=ECHO_PATH) as server:
        time.sleep(_SETTLE_S)
        with cpu_spent(server) as spent:
            time.sleep(_IDLE_S)
    return spent["controller"] / spent["seconds"]


# --- The report ----------------------------------------------------------------------------------


def cost_table(costs: Mapping[str, Mapping[str, Cost]]) -> str:
    """Milliseconds of each part in each mode."""
    rows = [(mode, part, cost) for mode, parts in costs.items() for part, cost in parts.items()]
    columns: dict[str, Callable[[tuple[str, str, Cost]], str]] = {
        "mode": lambda row: row[0],
        "part": lambda row: row[1],
        "a task": lambda row: f"{row[2].task * 1e3:.2f} ms",
        "a message": lambda row: f"{row[2].message * 1e3:.3f} ms",
        "a task that is not streamed": lambda row: f"{row[2].whole * 1e3:.2f} ms",
    }
    return table(rows, columns, names=1)


def replica_table(costs: Mapping[str, Mapping[str, Cost]], rates: Sequence[float]) -> str:
    """For how many replicas one process is enough, by the tasks a second that a replica can end."""
    answers = {
        "each token a message": ANSWER_TOKENS,
        "8 tokens a message": ANSWER_TOKENS // 8,
        "not streamed": None,
    }
    lines = [["tasks/s of a replica", "answers", *(f"{part}, {m}" for m in costs for part in _TWO)]]
    for rate in rates:
        for name, messages in answers.items():
            line = [f"{rate:g}", name]
            for mode, parts in costs.items():
                for part in _TWO:
                    threads = HAPROXY_THREADS if (mode, part) == ("tuned", "proxy") else 1
                    number = replicas_for_one(parts[part], LOAD * rate, messages, threads)
                    line.append(f"{number:.2g}" if number < 10 else f"{number:.0f}")
            lines.append(line)
    return aligned(lines, names=1)


_TWO = ("proxy", "ingress")
_CONTROLLER: dict[str, Callable[[dict[str, Any]], str]] = {
    "replicas": lambda row: str(row["replicas"]),
    "their number may change": lambda row: "yes" if row["may_scale"] else "no",
    "controller": lambda row: f"{row['cpu_s_per_s'] * 1e3:.0f} ms a second",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
    costs = {mode: measure_mode(mode) for mode in MODES}
    controller = []
    for replicas, scaling in _REPLICAS:
        busy = measure_controller(replicas, scaling=scaling)
        controller.append({"replicas": replicas, "may_scale": scaling, "cpu_s_per_s": busy})
        say(f"controller, {replicas} replicas: {busy:.1%} of a core")
    print(cost_table(costs), replica_table(costs, options.tasks_per_s), sep="\n\n")
    print("\n" + table(controller, _CONTROLLER))
    data = about("capacity", options, "ray") | {"controller": controller}
    data["costs"] = {
        mode: {part: asdict(c) for part, c in own.items()} for mode, own in costs.items()
    }
    write(options.out, "capacity", data)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.serving.capacity", __doc__)
    usual = "tasks a second that a replica can end; see docs/capacity.md for those that are used"
    parser.add_argument("--tasks-per-s", nargs="+", type=float, default=[11.4, 32.5], help=usual)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
