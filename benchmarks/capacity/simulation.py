"""The graph as queues: tasks arrive at random and pass proxy, ingress, preprocessor and replica.

A discrete-event simulation (simpy). Every process of the graph is a server with one thread that
works on one thing at a time, first come first served. Only tasks and bundles of their messages are
events: between two of them a replica's number of rows stays as it is, and so does the time of its
steps, which makes many steps one event. Nothing is lost by that but the order within a bundle.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import simpy

from benchmarks.capacity.costs import Measured, Mode, Stage, at
from benchmarks.capacity.scenarios import (
    NETWORK_BYTES_PER_S,
    STORE_BYTES,
    Engine,
    Layout,
    Workload,
)

HAPROXY_THREADS = 4  # RAY_SERVE_HAPROXY_NBTHREAD
MAX_IN_FLIGHT = 2048  # limits.max_in_flight
PROBES = 2  # messages: the two least busy replicas are asked when nothing is known of them
_BUNDLES = 4  # of a streamed answer, beside its first message
_PER_MB = 1e6

Process = Generator[simpy.Event, Any, None]


class Server:
    """One thread with a queue, first come first served.

    Attributes:
        busy: seconds of work that it was given since the last look.
    """

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self._free_at = 0.0
        self.busy = 0.0

    @property
    def backlog(self) -> float:
        """Seconds until it could begin something new."""
        return max(0.0, self._free_at - self._env.now)

    def work(self, seconds: float) -> simpy.Timeout:
        """An event that comes when it has done this, after all that it was given before."""
        self.busy += seconds
        self._free_at = max(self._env.now, self._free_at) + seconds
        return self._env.timeout(self._free_at - self._env.now)


@dataclass(eq=False)
class Task:
    """One task on its way; times are simulated seconds."""

    tokens: int
    arrived: float
    ended: simpy.Event
    picture_node: int = 0
    first_at: float | None = None
    done_at: float | None = None
    refused: bool = False


Relay = Callable[[Task, int, bool], None]
"""Told of a task, a number of messages, and whether they are the last ones."""


class Replica:
    """Continuous batching: rows that take their steps together, and a bounded queue.

    Attributes:
        busy: seconds, weighted with the share of the rows that were in use.
    """

    def __init__(
        self, env: simpy.Environment, engine: Engine, workload: Workload, relay: Relay
    ) -> None:
        self._env = env
        self._engine = engine
        self._per_chunk = workload.tokens_per_chunk
        self._relay = relay
        self._waiting: list[Task] = []
        self._running = 0
        self._steps = 0
        self._due: list[tuple[int, int, Task, int, bool]] = []
        self._order = count()
        self._wake = env.event()
        self.busy = 0.0
        env.process(self._run())

    @property
    def load(self) -> int:
        """Tasks that it has."""
        return self._running + len(self._waiting)

    def submit(self, task: Task) -> bool:
        """Take a task; False if the queue is full."""
        if self.load >= self._engine.max_sequences + self._engine.max_waiting:
            return False
        self._waiting.append(task)
        if not self._wake.triggered:
            self._wake.succeed()
        return True

    def _run(self) -> Process:
        env, engine = self._env, self._engine
        while True:
            self._wake = env.event()
            if admitted := self._admit():
                # The others' steps wait while the prompts are computed.
                self._count(admitted * engine.prefill_s)
                yield env.timeout(admitted * engine.prefill_s)
                self._tell()
            elif not self._due:
                yield self._wake
            else:
                step_s = engine.step_s(self._running)
                began, steps = env.now, self._due[0][0] - self._steps
                yield env.timeout(steps * step_s) | self._wake
                # Whoever came has to wait until the step has ended.
                taken = min(steps, -int(-(env.now - began) / step_s // 1))
                yield env.timeout(max(0.0, began + taken * step_s - env.now))
                self._count(taken * step_s)
                self._steps += taken
                self._tell()

    def _count(self, seconds: float) -> None:
        """Only rows that are in use are busy."""
        self.busy += seconds * self._running / self._engine.max_sequences

    def _admit(self) -> int:
        """Begin the tasks that there are rows for; returns how many."""
        admitted = self._waiting[: self._engine.max_sequences - self._running]
        del self._waiting[: len(admitted)]
        self._running += len(admitted)
        for task in admitted:
            for tokens, messages in bundles(task.tokens, self._per_chunk):
                entry = (self._steps + tokens - 1, next(self._order), task, messages)
                heapq.heappush(self._due, (*entry, tokens == task.tokens))
        return len(admitted)

    def _tell(self) -> None:
        while self._due and self._due[0][0] <= self._steps:
            _, _, task, messages, last = heapq.heappop(self._due)
            self._running -= last
            self._relay(task, messages, last)


def bundles(tokens: int, per_chunk: int | None) -> list[tuple[int, int]]:
    """When an answer's messages are told of: after how many tokens, and how many messages.

    The first one alone, because somebody waits for it, the others in a few bundles.
    """
    if per_chunk is None:
        return [(tokens, 1)]
    first = min(per_chunk, tokens)
    found, told = [(first, 1)], first
    messages = -(-(tokens - first) // per_chunk)
    each = max(1, -(-messages // _BUNDLES))
    while messages > 0:
        now = min(each, messages)
        told = min(tokens, told + now * per_chunk)
        found.append((told, now))
        messages -= now
    return found


@dataclass
class Outcome:
    """What came of a run; only tasks that arrived after the warm-up count.

    Attributes:
        seconds: that were looked at.
        busy: for each part, its share of busy time, averaged over its processes. More than 1 is
            work that piles up.
        store_peak: largest number of bytes in a node's object store.
    """

    seconds: float
    busy: dict[str, float]
    tasks: list[Task] = field(default_factory=list)
    store_peak: float = 0.0

    @property
    def refused(self) -> int:
        """Tasks that were refused."""
        return sum(task.refused for task in self.tasks)

    def first_token_s(self, share: float) -> float | None:
        """A percentile of the time to the first bytes of an answer."""
        times = sorted(t.first_at - t.arrived for t in self.tasks if t.first_at is not None)
        return times[min(len(times) - 1, int(share * len(times)))] if times else None

    def goodput(self, first_token_s: float) -> float:
        """Answers a second that ended in the time looked at and began within ``first_token_s``."""
        return (
            sum(
                task.first_at is not None and task.first_at - task.arrived <= first_token_s
                for task in self.tasks
                if task.done_at is not None
            )
            / self.seconds
        )


class Graph:
    """All processes of one cluster, or of a slice of one.

    Args:
        routed: replicas that a task's replica is chosen from, if they are more than there are here.
    """

    def __init__(
        self,
        measured: Measured,
        mode: Mode,
        engine: Engine,
        workload: Workload,
        layout: Layout,
        routed: int | None = None,
        seed: int = 0,
    ) -> None:
        self.env = simpy.Environment()
        self._chance = random.Random(seed)
        self._costs, self._router = measured.modes[mode], measured.router
        self._workload = workload
        self._picture = measured.pictures[workload.picture] if workload.picture else None
        body_mb = (self._picture.body_bytes if self._picture else 0) / _PER_MB
        self._enter_proxy = _to_begin(self._costs.proxy, workload, body_mb)
        self._enter_ingress = _to_begin(self._costs.ingress, workload, body_mb)
        self._enter_ingress += routing_s(measured, workload, routed or layout.replicas)
        self._enter_replica = _to_begin(self._costs.replica, workload, 0.0)
        threads = HAPROXY_THREADS if mode == "tuned" else 1
        self.proxies = self._servers(layout.proxies * threads)
        self.ingresses = self._servers(layout.ingresses)
        self.preprocessors = self._servers(layout.preprocessors)
        self.relays = self._servers(layout.replicas)
        self.replicas = [
            Replica(self.env, engine, workload, self._relay_of(number))
            for number in range(layout.replicas)
        ]
        self.networks = self._servers(layout.nodes)
        self._stores = [simpy.Container(self.env, STORE_BYTES) for _ in range(layout.nodes)]
        self._store_peak = 0.0
        self._in_flight = [0] * layout.ingresses
        self._paths: dict[int, tuple[Server, Server]] = {}
        self.tasks: list[Task] = []

    def _servers(self, number: int) -> list[Server]:
        return [Server(self.env) for _ in range(number)]

    def run(self, rate: float, warm_up_s: float, seconds: float) -> Outcome:
        """Tasks arrive at random for both times; then all that have come are ended."""
        self.env.process(self._arrivals(rate, warm_up_s + seconds))
        parts: dict[str, Sequence[Server] | Sequence[Replica]] = {
            "proxy": self.proxies,
            "ingress": self.ingresses,
            "preprocessor": self.preprocessors,
            "relay": self.relays,
            "engine": self.replicas,
            "network": self.networks,
        }
        self.env.run(until=warm_up_s)
        before = {name: _busy(part) for name, part in parts.items()}
        self._store_peak = 0.0
        self.env.run(until=warm_up_s + seconds)
        busy = {
            name: (_busy(part) - before[name]) / seconds / len(part) for name, part in parts.items()
        }
        busy["object store"] = self._store_peak / STORE_BYTES
        self.env.run()
        seen = [task for task in self.tasks if task.arrived >= warm_up_s]
        return Outcome(seconds, busy, seen, self._store_peak)

    def _arrivals(self, rate: float, until: float) -> Process:
        while True:
            yield self.env.timeout(self._chance.expovariate(rate))
            if self.env.now >= until:
                return
            task = Task(self._workload.tokens, self.env.now, self.env.event())
            self.tasks.append(task)
            self.env.process(self._life(task))

    def _life(self, task: Task) -> Process:
        """One task from its arrival to its end."""
        proxy = self._chance.choice(self.proxies)
        number = self._less_busy(self.ingresses)
        ingress = self.ingresses[number]
        yield proxy.work(self._enter_proxy)
        if self._in_flight[number] >= MAX_IN_FLIGHT:
            task.refused = True
            return
        self._in_flight[number] += 1
        yield ingress.work(self._enter_ingress)
        self._paths[id(task)] = (ingress, proxy)
        chosen = self._less_busy_replica()
        yield from self._prepare(task, chosen)
        yield self.relays[chosen].work(self._enter_replica)
        if self.replicas[chosen].submit(task):
            yield task.ended
        else:
            task.refused = True
        del self._paths[id(task)]
        self._in_flight[number] -= 1
        if self._picture is not None:
            yield self._stores[task.picture_node].get(self._picture.tensor_bytes)

    def _prepare(self, task: Task, chosen: int) -> Process:
        """The picture: prepared, put into a store, moved to the replica's machine."""
        if self._picture is None:
            return
        preprocessor = self._less_busy(self.preprocessors)
        yield self.preprocessors[preprocessor].work(self._picture.prepare + self._picture.put)
        task.picture_node = node = chosen * len(self._stores) // len(self.replicas)
        yield self._stores[node].put(self._picture.tensor_bytes)
        self._store_peak = max(self._store_peak, self._stores[node].level)
        if preprocessor % len(self._stores) != node:
            yield self.networks[node].work(self._picture.tensor_bytes / NETWORK_BYTES_PER_S)

    def _less_busy(self, servers: list[Server]) -> int:
        """The better one of two."""
        a, b = self._chance.randrange(len(servers)), self._chance.randrange(len(servers))
        return a if servers[a].backlog <= servers[b].backlog else b

    def _less_busy_replica(self) -> int:
        a, b = (self._chance.randrange(len(self.replicas)) for _ in range(PROBES))
        return a if self.replicas[a].load <= self.replicas[b].load else b

    def _relay_of(self, number: int) -> Relay:
        def relay(task: Task, messages: int, last: bool) -> None:
            self.env.process(self._deliver(number, task, messages, last))

        return relay

    def _deliver(self, number: int, task: Task, messages: int, last: bool) -> Process:
        """Messages on their way from a replica to the client."""
        ingress, proxy = self._paths[id(task)]
        costs, workload = self._costs, self._workload
        yield self.relays[number].work(messages * _of_a_chunk(costs.replica, workload))
        yield ingress.work(messages * _of_a_chunk(costs.ingress, workload))
        yield proxy.work(messages * _of_a_chunk(costs.proxy, workload))
        if task.first_at is None:
            task.first_at = self.env.now
        if last:
            task.done_at = self.env.now
            task.ended.succeed()


def routing_s(measured: Measured, workload: Workload, replicas: int) -> float:
    """What choosing a replica costs the ingress."""
    router = measured.router
    curve = router.beginning if workload.beginning else router.plain
    return at(curve, replicas) + (PROBES * router.probe if replicas > 1 else 0.0)


def _to_begin(stage: Stage, workload: Workload, body_mb: float) -> float:
    streamed = workload.tokens_per_chunk is not None
    return (stage.task if streamed else stage.whole) + body_mb * stage.body_mb


def _of_a_chunk(stage: Stage, workload: Workload) -> float:
    # What an answer in one piece costs is counted when it begins.
    return 0.0 if workload.tokens_per_chunk is None else stage.chunk


def _busy(part: Sequence[Server] | Sequence[Replica]) -> float:
    return sum(one.busy for one in part)
