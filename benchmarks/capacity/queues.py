"""What the simulation is made of: a thread with a queue, and a replica that batches.

Between two events a replica's number of rows stays as it is, and so does the time of its steps,
which makes many steps one event.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count
from typing import Any

import simpy

from benchmarks.capacity.scenarios import Engine, Workload

_BUNDLES = 4  # of a streamed answer, beside its first message

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
