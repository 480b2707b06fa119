"""The graph as queues: tasks arrive at random and pass proxy, ingress, preprocessor and replica.

A discrete-event simulation (simpy). Every process of the graph is a server with one thread that
works on one thing at a time, first come first served. Only tasks and bundles of their messages are
events.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import simpy

from benchmarks.capacity.costs import Measured, Mode, Stage, at
from benchmarks.capacity.queues import Process, Relay, Replica, Server, Task
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
        self._enter_proxy = to_begin(self._costs.proxy, workload)
        self._enter_ingress = to_begin(self._costs.ingress, workload)
        self._enter_ingress += self._picture.parse if self._picture else 0.0
        self._enter_ingress += routing_s(measured, workload, routed or layout.replicas)
        self._enter_replica = to_begin(self._costs.replica, workload)
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


def to_begin(stage: Stage, workload: Workload) -> float:
    """What a task costs a part beside its messages."""
    begun = stage.whole if workload.tokens_per_chunk is None else stage.task
    return begun + (stage.picture if workload.picture else 0.0)


def _of_a_chunk(stage: Stage, workload: Workload) -> float:
    # What an answer in one piece costs is counted when it begins.
    return 0.0 if workload.tokens_per_chunk is None else stage.chunk


def _busy(part: Sequence[Server] | Sequence[Replica]) -> float:
    return sum(one.busy for one in part)
