"""The simulation beside the real server: the same loads, and how far it is off."""

from __future__ import annotations

from typing import Any

from benchmarks.capacity.costs import Measured
from benchmarks.capacity.scenarios import Layout, Workload, engines
from benchmarks.capacity.simulation import Graph
from benchmarks.engine.report import aligned

_SECONDS = 120.0
_WARM_UP_S = 10.0


def validate(measured: Measured) -> list[dict[str, Any]]:
    """Each measured point and what the simulation says of it.

    CPU seconds are of one task in each part. In the simulation every process has a core of its own;
    ``waited`` says how long those of the real server stood in line for one, for each task.
    """
    engine = engines(measured)["demo"]
    found = []
    for point in measured.points:
        workload = Workload("point", point["tokens"])
        layout = Layout(point["replicas"], scaling=False)
        graph = Graph(measured, point["mode"], engine, workload, layout)
        outcome = graph.run(point["rate"], _WARM_UP_S, _SECONDS)
        times = sorted(t.done_at - t.arrived for t in outcome.tasks if t.done_at is not None)
        tasks = point["tasks"]
        costs = measured.modes[point["mode"]]
        found.append(
            {
                "mode": point["mode"],
                "replicas": point["replicas"],
                "rate": point["rate"],
                "measured": {
                    "first_token_p50_s": point["first_token_p50_s"],
                    "first_token_p95_s": point["first_token_p95_s"],
                    "task_p50_s": point["task_p50_s"],
                    "ingress_cpu_s": point["cpu_s"]["ingress"] / tasks,
                    "proxy_cpu_s": point["cpu_s"]["proxy"] / tasks,
                    "tokens_a_chunk": point["tokens_told"] / point["chunks"],
                },
                "simulated": {
                    "first_token_p50_s": outcome.first_token_s(0.5),
                    "first_token_p95_s": outcome.first_token_s(0.95),
                    "task_p50_s": times[len(times) // 2],
                    "ingress_cpu_s": costs.ingress.task + workload.chunks * costs.ingress.chunk,
                    "proxy_cpu_s": costs.proxy.task + workload.chunks * costs.proxy.chunk,
                    "tokens_a_chunk": 1.0,
                },
                "waited_s": sum(point["waited_s"].values()) / tasks,
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Simulated beside measured, for people."""
    names = ("first_token_p50_s", "first_token_p95_s", "task_p50_s", "ingress_cpu_s", "proxy_cpu_s")
    lines = [["mode", "replicas", "tasks/s", "", "simulated", "measured", "ratio"]]
    for one in found:
        for name in names:
            simulated, measured = one["simulated"][name], one["measured"][name]
            lines.append(
                [
                    one["mode"],
                    str(one["replicas"]),
                    f"{one['rate']:.1f}",
                    name.removesuffix("_s"),
                    f"{simulated * 1e3:.1f} ms",
                    f"{measured * 1e3:.1f} ms",
                    f"{simulated / measured:.2f}",
                ]
            )
    return aligned(lines, names=1)
