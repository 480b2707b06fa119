"""Runs the same tasks on an engine that speculates and on one that does not, in turns."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.harness.engine_api import Engine
from benchmarks.harness.load import at_once
from benchmarks.speculation.workloads import MIX, mixed_tasks, tasks_of
from benchmarks.workloads.real_texts import HALVES
from schema.answers.response import TaskResponse
from schema.task import Task

OFF: Literal["off"] = "off"
ON: Literal["on"] = "on"
_COUNTS = ("decode_steps", "drafts_proposed", "drafts_accepted")


class AnswersDifferError(Exception):
    """Speculation has changed an answer."""


@dataclass(frozen=True)
class Case:
    """What is compared: tasks of one kind, sent by a number of clients.

    Attributes:
        half: how their tokens are drawn; both of a mix.
        tasks: of each half.
    """

    workload: str
    half: str
    clients: int
    tasks: int

    def make(self, workloads: Sequence[str], turn: str) -> list[Task]:
        """The tasks of one round, which no other case and round has."""
        turn = f"{turn}/{self.clients}"
        if self.workload == MIX:
            return mixed_tasks(workloads, self.tasks, f"{turn}/{MIX}")
        return [
            task
            for half in HALVES
            if half == self.half
            for task in tasks_of(self.workload, half, self.tasks, turn)
        ]


@dataclass(frozen=True)
class Row:
    """One run of a case.

    Attributes:
        speculation: on or off.
        tokens: of all answers.
        decode_steps: of the engine in this time; 0 where it does not count them.
        load: running processes on the machine, averaged over a minute.
    """

    workload: str
    half: str
    clients: int
    round: int
    speculation: str
    tasks: int
    tokens: int
    seconds: float
    decode_steps: int
    drafts_proposed: int
    drafts_accepted: int
    load: float


def cases(
    workloads: Sequence[str], clients: Sequence[int], tasks: int, *, mix: bool
) -> Iterator[Case]:
    """Everything to compare; tasks are repeated, with other prompts, until all clients work."""
    for number in clients:
        # Twice as many as clients: at the end, when tasks run out, some clients have nothing to do.
        count = max(tasks, 2 * number)
        for workload in workloads:
            yield from (Case(workload, half, number, count) for half in HALVES)
        if mix:
            yield Case(MIX, "both", number, tasks)


def compare(
    engines: dict[str, Engine],
    case: Case,
    workloads: Sequence[str],
    rounds: int,
    load: Callable[[], float],
) -> Iterator[Row]:
    """Run a case on both engines in turns: A B A B.

    Raises:
        AnswersDifferError: an answer is not the same on both.
    """
    for number in range(rounds):
        tasks = case.make(workloads, f"round {number}")
        answers: dict[str, list[TaskResponse]] = {}
        for name, engine in engines.items():
            before = _counts(engine)
            start = time.perf_counter()
            answers[name] = asyncio.run(at_once(tasks, case.clients, engine.run))
            seconds = time.perf_counter() - start
            counts = {key: value - before[key] for key, value in _counts(engine).items()}
            yield Row(
                workload=case.workload,
                half=case.half,
                clients=case.clients,
                round=number,
                speculation=name,
                tasks=len(tasks),
                tokens=sum(a["usage"]["completion_tokens"] for a in answers[name]),
                seconds=seconds,
                load=load(),
                **counts,
            )
        check_equal(tasks, answers[OFF], answers[ON])


def check_equal(
    tasks: Sequence[Task], off: Sequence[TaskResponse], on: Sequence[TaskResponse]
) -> None:
    """Compare all that an answer has: text, token ids, finish reason, usage.

    Raises:
        AnswersDifferError: with the first task whose answers differ.
    """
    for task, one, other in zip(tasks, off, on, strict=True):
        if one["choices"] != other["choices"] or one["usage"] != other["usage"]:
            raise AnswersDifferError(
                f"{task.model_dump_json()}\nwithout speculation: {one}\nwith it: {other}"
            )


def _counts(engine: Engine) -> dict[str, int]:
    stats = engine.stats()
    return {name: stats.get(name, 0) for name in _COUNTS}
