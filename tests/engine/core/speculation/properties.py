"""The property: whatever is guessed or known of an answer beforehand, it is the same to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from random import Random

from engine import Engine
from schema import Task, TaskError
from tests.engine.core.speculation.comparison import (
    Known,
    Outcome,
    difference,
    outcome,
    token_ids,
    with_token_ids,
)
from tests.engine.core.speculation.drafts import DRAFTS, KNOWN
from tests.engine.core.speculation.engines import Guided, Script
from tests.engine.core.speculation.random_tasks import Vocabulary, random_task

TOGETHER = 16
"""Tasks that run at once."""


@dataclass(frozen=True)
class Way:
    """One way to run a task with speculation.

    Attributes:
        drafts: of `DRAFTS`; None for the engine's own.
        known: of `KNOWN`.
        whole: as one chunk.
        together: among others.
    """

    drafts: str | None
    known: str = "nothing"
    whole: bool = False
    together: bool = False

    def __str__(self) -> str:
        return ", ".join(
            (
                "among others" if self.together else "alone",
                f"drafts: {self.drafts or 'its own'}",
                f"known: {self.known}",
                "whole" if self.whole else "streamed",
            )
        )


@dataclass(frozen=True)
class Case:
    """A task and what it gives without speculation.

    Attributes:
        seed: of the task.
        task: the task.
        want: its outcome.
        answers: the tokens of its choices.
    """

    seed: int
    task: Task
    want: Outcome
    answers: list[list[int]]


@dataclass(frozen=True)
class Difference:
    """A task whose outcome depends on speculation."""

    case: Case
    way: Way
    what: str

    def __str__(self) -> str:
        return f"seed {self.case.seed}, {self.way}: {self.what}\n{self.case.task.model_dump_json()}"


async def make_cases(engine: Engine, vocabulary: Vocabulary, seeds: Sequence[int]) -> list[Case]:
    """Run the tasks of some seeds one by one, on an engine without speculation."""
    assert engine._loop._execution.speculation.guesser is None
    cases = []
    for seed in seeds:
        task = random_task(seed, vocabulary)
        want = await outcome(engine, task)
        full = want if task.return_token_ids else await outcome(engine, with_token_ids(task))
        cases.append(Case(seed, task, want, token_ids(full)))
    return cases


def some_way(rng: Random, *, together: bool) -> Way:
    """A way to run a task."""
    known = rng.choice(list(KNOWN)) if rng.random() < 0.4 else "nothing"
    return Way(rng.choice([*DRAFTS, None]), known, rng.random() < 0.5, together)


async def check(guided: Guided, case: Case, way: Way) -> Difference | None:
    """Run a task in one way; None if it gives what it gives without speculation."""
    rng = Random(f"{case.seed} {way}")
    name = f"{case.seed}, {way}"
    known: Known = KNOWN[way.known](case.answers, rng, guided.vocabulary)
    guided.guesser.scripts[name] = Script(way.drafts, case.answers, rng)
    got = await outcome(guided.engine, case.task, name, known=known, whole=way.whole)
    what = difference(case.want, got)
    return None if what is None else Difference(case, way, what)


async def leave(guided: Guided, task: Task, chunks: int) -> None:
    """A client that disconnects in the middle of its answer."""
    with suppress(TaskError):  # it would have failed anyway
        handle = await guided.engine.submit(task, log_id="leaves")
        try:
            while chunks > 0 and not handle.done:
                await handle.next()
                chunks -= 1
        finally:
            handle.cancel()


async def differences(guided: Guided, cases: Sequence[Case]) -> list[Difference]:
    """All that speculation changes in these cases; it should be nothing.

    Each task runs alone in one way; then twice among others, some of which disconnect: in another
    way, and with the engine's own guesses.
    """
    found: list[Difference | None] = []
    for start in range(0, len(cases), TOGETHER):
        some = list(cases[start : start + TOGETHER])
        rng = Random(some[0].seed)
        guided.take_all(True)
        for case in some:
            found.append(await check(guided, case, some_way(rng, together=False)))
        for own in (False, True):
            guided.take_all(not own)
            ways = [some_way(rng, together=True) for _ in some]
            if own:
                ways = [replace(way, drafts=None, known="nothing") for way in ways]
            rng.shuffle(some)
            leaving = [leave(guided, case.task, rng.randrange(4)) for case in some[:3]]
            checks = [check(guided, *pair) for pair in zip(some, ways, strict=True)]
            results, _ = await asyncio.gather(asyncio.gather(*checks), asyncio.gather(*leaving))
            found += results
    return [one for one in found if one is not None]
