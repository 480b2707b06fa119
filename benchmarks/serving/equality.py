"""Whether a server's answers are the same alone and under load, whatever the order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

from benchmarks.harness.client import Answer, Client, Job
from benchmarks.harness.models import ServedModel
from benchmarks.workloads.jobs import REAL_TEXTS, jobs

_SEED = 20260101


@dataclass(frozen=True)
class Equality:
    """How many requests were answered in all orders as they were alone.

    Attributes:
        greedy, greedy_same: those that ask for the most probable tokens.
        seeded, seeded_same: those that draw with a seed; none where a server
            does not honour seeds.
        errors: answers that are missing; their requests do not count as the same.
    """

    greedy: int
    greedy_same: int
    seeded: int
    seeded_same: int
    orders: int
    errors: list[str]

    @property
    def holds(self) -> bool:
        """Whether all were the same."""
        return (self.greedy_same, self.seeded_same) == (self.greedy, self.seeded)

    def __str__(self) -> str:
        seeded = f", {self.seeded_same} of {self.seeded} seeded" if self.seeded else ""
        missing = f", {len(self.errors)} errors" if self.errors else ""
        return f"{self.greedy_same} of {self.greedy} greedy{seeded}{missing}"


def equality_jobs(
    model: ServedModel, workload: str, count: int, tokens: int, *, seeds: bool
) -> list[Job]:
    """Short requests; every second one draws with a seed of its own, if the server honours it."""
    source = islice(jobs(workload, model, "equality"), count)
    if workload in REAL_TEXTS:  # half of them are sampled as they come
        limited = (replace(job, max_tokens=min(tokens, job.max_tokens)) for job in source)
        return [job if seeds else replace(job, seed=None) for job in limited]
    return [
        replace(job, max_tokens=tokens, seed=number if seeds and number % 2 else None)
        for number, job in enumerate(source)
    ]


async def compare(client: Client, asked: Sequence[Job], orders: int) -> Equality:
    """Send every job alone, then all at once in several orders, and compare the texts."""
    alone = [await client.send(job) for job in asked]
    errors = [answer.error for answer in alone if answer.error]
    same = [answer.complete for answer in alone]
    shuffle = random.Random(_SEED)
    for _ in range(orders):
        order = shuffle.sample(range(len(asked)), len(asked))
        together: list[Answer] = await asyncio.gather(*(client.send(asked[i]) for i in order))
        errors += [answer.error for answer in together if answer.error]
        for index, answer in zip(order, together, strict=True):
            same[index] &= answer.complete and answer.text == alone[index].text
    greedy = [ok for job, ok in zip(asked, same, strict=True) if job.seed is None]
    seeded = [ok for job, ok in zip(asked, same, strict=True) if job.seed is not None]
    return Equality(len(greedy), sum(greedy), len(seeded), sum(seeded), orders, errors)
