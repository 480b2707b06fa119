"""Tasks from the real texts of `benchmarks.workloads.real_texts`, each half of them by itself."""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.harness.client import Endpoint
from benchmarks.workloads.real_texts import HALVES, WORKLOADS, Half, real_job
from schema.task import Task

MIX = "mix"
MODEL = "benchmark"


def tasks_of(workload: str, half: Half, count: int, turn: str) -> list[Task]:
    """``count`` tasks of a workload; more than there are inputs begin with the first again.

    Args:
        workload: one of `WORKLOADS`.
        half: how tokens are drawn.
        count: how many.
        turn: what else makes prompts and seeds differ, so that no two turns share any.
    """
    inputs = WORKLOADS[workload]()
    endpoint = Endpoint("", MODEL, "tasks", {"return_token_ids": True})
    jobs = [
        real_job(inputs[number % len(inputs)], half, f"{turn}/{workload}/{half}/{number}")
        for number in range(count)
    ]
    return [Task.from_fields(**endpoint.body(job)) for job in jobs]


def mixed_tasks(workloads: Sequence[str], count: int, turn: str) -> list[Task]:
    """``count`` tasks of each half of all workloads, shuffled."""
    tasks = [
        task for name in workloads for half in HALVES for task in tasks_of(name, half, count, turn)
    ]
    random.Random(turn).shuffle(tasks)
    return tasks
