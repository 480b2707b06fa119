"""The controller as a queue: rounds of its loop, health checks and reports, all on one thread."""

from __future__ import annotations

from dataclasses import dataclass, field

import simpy

from benchmarks.capacity.costs import ControllerCosts, at
from benchmarks.capacity.queues import Process, Server

LOOP_S = 0.1  # RAY_SERVE_CONTROL_LOOP_INTERVAL_S
REPORT_S = 1.0  # metrics_interval_s of serve_app.app
HEALTH_S = 1.0  # health_check_period_s of serve_app.app
_MESSAGE_EVENTS = 500  # a second; beyond, several messages are one piece of work


@dataclass
class Controlled:
    """What came of a run.

    Attributes:
        busy: share of the time; more than 1 is work that piles up.
        loop_s: from the beginning of a round of its loop to that of the next, on average.
        delay_s: of a message until it was taken, on average.
    """

    busy: float
    loop_s: float
    delay_s: float


@dataclass
class _Seen:
    rounds: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)


def control(
    costs: ControllerCosts, replicas: int, ingresses: int, *, scaling: bool, seconds: float = 5.0
) -> Controlled:
    """Run the controller of one deployment with so many replicas, whose handles the ingresses hold.

    Args:
        costs: its costs.
        replicas: whose number does not change.
        ingresses: each has one handle.
        scaling: whether replicas and handles report, and it decides about their number.
        seconds: that are simulated.
    """
    env, seen = simpy.Environment(), _Seen()
    thread = Server(env)
    decision = 0.0
    if scaling:
        further = (ingresses - 1) * at(costs.decision_handle, replicas)
        decision = at(costs.decision, replicas) + further
        message = costs.replica_report
        env.process(_messages(env, thread, seen, replicas / REPORT_S, message))
        message += at(costs.handle_report, replicas)
        env.process(_messages(env, thread, seen, ingresses / REPORT_S, message))
    env.process(_messages(env, thread, seen, replicas / HEALTH_S, costs.per_replica * HEALTH_S))
    env.process(_rounds(env, thread, seen, costs.base * LOOP_S + decision))
    env.run(until=seconds)
    return Controlled(
        busy=thread.busy / seconds,
        loop_s=seconds / max(1, len(seen.rounds)),
        delay_s=sum(seen.delays) / max(1, len(seen.delays)),
    )


def _rounds(env: simpy.Environment, thread: Server, seen: _Seen, cost: float) -> Process:
    while True:
        yield thread.work(cost)
        seen.rounds.append(env.now)
        yield env.timeout(LOOP_S)


def _messages(
    env: simpy.Environment, thread: Server, seen: _Seen, rate: float, cost: float
) -> Process:
    """Messages at a steady rate, each taken when the thread comes to it."""
    together = max(1.0, rate / _MESSAGE_EVENTS)
    while True:
        yield env.timeout(together / rate)
        seen.delays.append(thread.backlog + together * cost)
        thread.work(together * cost)
