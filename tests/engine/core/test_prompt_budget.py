"""How many rows of prompts steps take, on a made-up machine with a clock of its own."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.scheduling.prompt_budget import PromptBudget
from engine.execution.batch_sizes import BatchSizes
from tests.engine.core.test_scheduler import (
    ALL_SIZES,
    CHUNK,
    MAX_ROWS,
    MAX_SEQUENCES,
    FakeLoop,
    Job,
)

PASSED = 3  # steps that a chunk waits at most


@dataclass(frozen=True)
class Machine:
    """What forwards take: a fixed part, and one for each row."""

    fixed: float
    per_row: float

    def seconds(self, rows: int) -> float:
        size = next(size for size in ALL_SIZES if size >= rows)
        return self.fixed + self.per_row * size


class TimedLoop(FakeLoop):
    """Runs on a machine, and notes the streams and chunks of all steps."""

    def __init__(self, machine: Machine, max_wait_steps: int | None) -> None:
        super().__init__(num_pages=400, max_wait_steps=max_wait_steps)
        self.machine = machine
        self.steps: list[tuple[int, list[int]]] = []

    def seconds(self, streams: int, prompt_rows: int) -> float:
        rows = streams + prompt_rows
        if not rows:
            return 0.0
        if rows > MAX_ROWS:
            return self.machine.seconds(streams) + self.machine.seconds(prompt_rows)
        return self.machine.seconds(rows)

    def took(self, streams: int, chunks: list[int]) -> None:
        self.steps.append((streams, chunks))

    def submit(self, prompt_tokens: int, new_tokens: int) -> None:
        # A prompt of its own: none of it is known from another one.
        prompt = [1000 * len(self.admitted) + 7 * n for n in range(prompt_tokens)]
        job = Job(prompt, new_tokens, 1, fallback=False, cancel_after=None)
        self.scheduler.waiting.append(job.request())

    def run(self) -> None:
        while self.scheduler.waiting or self.scheduler.running:
            self.step()


machines = st.builds(Machine, st.floats(0.0, 2.0), st.floats(0.001, 0.5))


@settings(max_examples=40, deadline=None)
@given(machine=machines, streams=st.integers(1, 4), limit=st.integers(1, 6))
def test_streams_wait_no_longer_than_the_limit_and_prompts_go_on(
    machine: Machine, streams: int, limit: int
) -> None:
    loop = TimedLoop(machine, limit)
    for _ in range(streams):
        loop.submit(prompt_tokens=CHUNK, new_tokens=120)
    while loop.scheduler.num_streams < streams:
        loop.step()
    for _ in range(6):  # what steps take is learned
        loop.step()
    loop.steps.clear()
    loop.submit(prompt_tokens=10 * CHUNK, new_tokens=1)
    passed = 0
    while loop.scheduler.waiting or len(loop.scheduler.running) > loop.scheduler.num_streams:
        loop.step()
        beside, chunks = loop.steps[-1]
        if not chunks:
            passed += 1
            assert passed <= PASSED  # the prompt goes on
            continue
        due, passed = passed == PASSED, 0
        own = machine.seconds(beside)
        taken = loop.seconds(beside, sum(chunks))
        assert taken <= limit * own * (1 + 1e-9) or (due and len(chunks) == 1)
    loop.run()
    assert len(loop.admitted) == streams + 1


@given(machine=machines)
@settings(max_examples=20, deadline=None)
def test_while_nothing_is_generated_a_step_takes_what_fits(machine: Machine) -> None:
    loop = TimedLoop(machine, 1)
    for _ in range(4):
        loop.submit(prompt_tokens=3 * CHUNK, new_tokens=1)
    loop.step()
    assert loop.steps[0] == (0, [CHUNK] * (MAX_ROWS // CHUNK))


def test_without_a_limit_streams_take_what_fits_beside_them() -> None:
    loop = TimedLoop(Machine(0.0, 1.0), None)
    loop.submit(prompt_tokens=4, new_tokens=50)
    loop.step()
    loop.submit(prompt_tokens=10 * CHUNK, new_tokens=1)
    loop.step()
    assert loop.steps[-1] == (1, [CHUNK] * 2)


@pytest.mark.parametrize("limit", [2, 4, 8])
def test_where_prompts_have_forwards_of_their_own(limit: int) -> None:
    """As on CUDA: a step with prompts is two forwards, and both count."""
    now = 0.0
    sizes = BatchSizes((1, 2, 4, MAX_SEQUENCES), ALL_SIZES, MAX_SEQUENCES)
    budget = PromptBudget(sizes, limit, clock=lambda: now)

    def step(streams: int, prompt_rows: int) -> None:
        nonlocal now
        timed = budget.begin()
        budget.chosen(streams, prompt_rows, passed_over=False)
        now += 1.0 * bool(streams) + 0.25 * prompt_rows
        budget.end(timed)

    for _ in range(10):
        step(2, 0)
        for rows in (4, 8, 12, 16, 20, 24):
            step(2, rows)
    fitting = [rows for rows in (4, 8, 12, 16, 20, 24) if budget.takes(1, 2, rows, first=False)]
    assert fitting == [rows for rows in (4, 8, 12, 16, 20, 24) if 1 + 0.25 * rows <= limit]


@pytest.mark.parametrize(("waiting", "wanted"), [(1, 2), (2, 2), (4, 4), (6, 6)])
def test_few_streams_do_not_hold_up_many_that_wait(waiting: int, wanted: int) -> None:
    """Beside two streams; a step takes 1 s for 8 rows, and so do the streams alone."""
    now = 0.0
    sizes = BatchSizes((8,), tuple(range(8, 56, 8)), 48, can_mix_prefill_and_decode=True)
    budget = PromptBudget(sizes, 2, clock=lambda: now)
    for streams, rows in [(2, 0), *((2, 8 * n - 2) for n in range(1, 7))] * 5:
        timed = budget.begin()
        budget.chosen(streams, rows, passed_over=False)
        now += max(1.0, (streams + rows) / 8)
        budget.end(timed)
    takes = [n for n in range(1, 7) if budget.takes(waiting, 2, 8 * n - 2, first=True)]
    assert takes == list(range(1, wanted + 1))


def test_a_step_that_was_disturbed_is_forgotten() -> None:
    """One slow step, of a machine that was busy, does not keep prompts or streams waiting."""
    machine = Machine(1.0, 0.01)
    loop = TimedLoop(machine, 3)
    loop.submit(prompt_tokens=4, new_tokens=300)
    for _ in range(5):
        loop.step()
    loop.submit(prompt_tokens=2 * CHUNK, new_tokens=1)
    loop.machine = Machine(1000.0, 0.01)
    loop.step()
    loop.machine = machine
    for _ in range(40):
        loop.step()
    loop.steps.clear()
    loop.submit(prompt_tokens=2 * CHUNK, new_tokens=1)
    loop.step()
    assert loop.steps == [(1, [CHUNK] * 2)]
