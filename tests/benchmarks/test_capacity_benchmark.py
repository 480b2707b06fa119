"""The simulation of many replicas agrees with queueing theory, loses nothing, repeats itself."""

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import simpy

from benchmarks.capacity.controller import LOOP_S, control
from benchmarks.capacity.costs import Measured, at
from benchmarks.capacity.queues import Replica, Server, Task, bundles
from benchmarks.capacity.scenarios import Engine, Layout, Workload, engines
from benchmarks.capacity.simulation import Graph, Outcome
from benchmarks.capacity.sweep import TEXT, beside, demands, simulate

RATE = 0.8  # tasks a second, each of which is one second of work
STEP_S = 0.01


@pytest.fixture(scope="module")
def measured() -> Measured:
    """The costs that are part of the repository."""
    return Measured.load()


def mean_wait_of_server(count: int) -> float:
    """Mean seconds in line in front of one server, with equal pieces of work."""
    env, chance, waits = simpy.Environment(), random.Random(3), []
    server = Server(env)

    def arrivals() -> simpy.events.ProcessGenerator:
        for _ in range(count):
            yield env.timeout(chance.expovariate(RATE))
            waits.append(server.backlog)
            server.work(1.0)

    env.process(arrivals())
    env.run()
    return sum(waits) / count


def test_a_server_is_md1() -> None:
    """Pollaczek and Khinchine: rho / (2 (1 - rho)) of a piece of work."""
    assert mean_wait_of_server(60_000) == pytest.approx(RATE / (2 * (1 - RATE)), rel=0.06)


def mean_time_in_replica(engine: Engine, rate: float, mean_tokens: float, count: int) -> float:
    """Mean seconds of a task in a replica, with exponentially many tokens."""
    env, chance, times = simpy.Environment(), random.Random(3), []
    arrived: dict[int, float] = {}
    workload = Workload("theory", 0, tokens_per_chunk=None)

    def relay(task: Task, messages: int, last: bool) -> None:
        assert messages == 1
        assert last
        times.append(env.now - arrived.pop(id(task)))

    replica = Replica(env, engine, workload, relay)
    kept = []

    def arrivals() -> simpy.events.ProcessGenerator:
        for _ in range(count):
            yield env.timeout(chance.expovariate(rate))
            tokens = 1 + round(chance.expovariate(1 / mean_tokens))
            kept.append(task := Task(tokens, env.now, env.event()))
            arrived[id(task)] = env.now
            assert replica.submit(task)

    env.process(arrivals())
    env.run()
    assert len(times) == count
    return sum(times) / count


def test_a_replica_with_steps_that_do_not_depend_on_rows_is_mmc() -> None:
    """Erlang's C formula."""
    rows, mean_s = 4, 100 * STEP_S
    rate = 0.7 * rows / mean_s
    engine = Engine("theory", "", 0.0, lambda _: STEP_S, max_sequences=rows, max_waiting=10**9)
    load = rate * mean_s
    waiting = load**rows / math.factorial(rows) * rows / (rows - load)
    none = sum(load**n / math.factorial(n) for n in range(rows))
    expected = mean_s + waiting / (none + waiting) / (rows / mean_s - rate)
    # A step that has begun has to end first: half a step.
    found = mean_time_in_replica(engine, rate, 100, 8000) - STEP_S / 2
    assert found == pytest.approx(expected, rel=0.05)


def test_a_replica_whose_steps_grow_with_its_rows_is_processor_sharing() -> None:
    """All share one: the mean time is that of an M/M/1 queue."""
    mean_s = 100 * STEP_S
    rate = 0.6 / mean_s
    engine = Engine("theory", "", 0.0, lambda rows: rows * STEP_S, 10**6, 10**9)
    expected = mean_s / (1 - rate * mean_s)
    assert mean_time_in_replica(engine, rate, 100, 8000) == pytest.approx(expected, rel=0.1)


def run(measured: Measured, workload: Workload, rate: float, seed: int = 0) -> Outcome:
    """A small cluster for a few seconds."""
    layout = Layout(3, ingresses=2, preprocessors=2)
    graph = Graph(measured, "default", engines(measured)["8b-bf16"], workload, layout, seed=seed)
    return graph.run(rate, 1.0, 3.0)


@pytest.mark.parametrize(
    "workload",
    [
        TEXT,
        replace(TEXT, tokens_per_chunk=None),
        replace(TEXT, tokens=33, tokens_per_chunk=8),
        replace(TEXT, tokens=9, picture="InternVL, 12 MP JPEG"),
    ],
)
def test_every_task_ends_and_has_its_first_token_before(
    measured: Measured, workload: Workload
) -> None:
    """Answered or refused, once, in order; also with more tasks than there is room for."""
    for rate in (5.0, 300.0):
        outcome = run(measured, workload, rate)
        assert outcome.tasks
        for task in outcome.tasks:
            if task.refused:
                assert task.first_at is None
                assert task.done_at is None
            else:
                assert task.first_at is not None
                assert task.done_at is not None
                assert task.arrived < task.first_at <= task.done_at


def test_equal_seeds_make_equal_runs(measured: Measured) -> None:
    def times(seed: int) -> list[float | None]:
        return [task.done_at for task in run(measured, TEXT, 20.0, seed).tasks]

    assert times(1) == times(1)
    assert times(1) != times(2)


def test_bundles_hold_all_messages_and_all_tokens() -> None:
    for tokens in (1, 2, 7, 128):
        for per_chunk in (1, 8, 200):
            found = bundles(tokens, per_chunk)
            assert found[-1][0] == tokens
            assert sum(messages for _, messages in found) == math.ceil(tokens / per_chunk)
            assert [told for told, _ in found] == sorted({told for told, _ in found})


def test_busy_time_is_the_work_that_was_asked_for(measured: Measured) -> None:
    """The simulation and plain multiplication agree where nothing is full."""
    rate, layout = 6.0, Layout(2, scaling=False)
    engine = engines(measured)["8b-bf16"]
    row = simulate(measured, "tuned", engine, TEXT, layout, rate, scaled=False, seconds=60.0)
    expected = demands(measured, "tuned", TEXT, rate, 2)["ingress"]
    expected += beside(measured, "tuned", layout)
    assert row.busy["ingress"] == pytest.approx(expected, rel=0.1)


def test_the_controller_slows_down_as_replicas_become_more(measured: Measured) -> None:
    few = control(measured.controller, 1, 1, scaling=True)
    many = control(measured.controller, 1000, 10, scaling=True)
    assert LOOP_S < few.loop_s < many.loop_s
    assert few.busy < many.busy


def test_costs_are_straight_lines_between_the_measured_points() -> None:
    curve = [(1, 1.0), (3, 5.0), (4, 6.0)]
    assert [at(curve, number) for number in (1, 2, 3, 4, 6)] == [1.0, 3.0, 5.0, 6.0, 8.0]


def test_what_was_measured_survives_its_file(measured: Measured, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(measured.as_json()))
    assert Measured.load(file) == measured
