"""The costs of the graph's parts, and what follows from them, are those worked out by hand."""

import pytest

from benchmarks.serving.capacity import (
    HAPROXY_THREADS,
    KINDS,
    PARTS,
    Cost,
    Spent,
    cost_table,
    replica_table,
    replicas_for_one,
    solve,
)

COST = Cost(task=0.008, message=0.001, whole=0.012)


def spent(cost: Cost) -> dict[str, Spent]:
    """What tasks of each kind take if they cost so much, and every token is a message."""
    found = {}
    for name, kind in KINDS.items():
        messages = kind.count * (kind.tokens if kind.stream else 1)
        each = cost.of(kind.tokens if kind.stream else None)
        found[name] = Spent(kind.count, messages, {"ingress": kind.count * each})
    return found


def test_two_lengths_of_answers_give_the_costs_of_a_task_and_of_a_message() -> None:
    found = solve(spent(COST), "ingress")
    assert (found.task, found.message, found.whole) == pytest.approx((0.008, 0.001, 0.012))
    nothing = solve(spent(COST), "proxy")
    assert (nothing.task, nothing.message, nothing.whole) == (0.0, 0.0, 0.0)


def test_busy_time_is_the_work_that_was_asked_for() -> None:
    """One process has a second of work each second when that many replicas are busy."""
    number = replicas_for_one(COST, tasks_per_s=5.0, messages=128, threads=1)
    assert number * 5.0 * COST.of(128) == pytest.approx(1.0)
    assert COST.of(128) == pytest.approx(0.136)
    more = replicas_for_one(COST, tasks_per_s=5.0, messages=128, threads=HAPROXY_THREADS)
    assert more == pytest.approx(HAPROXY_THREADS * number)
    assert replicas_for_one(COST, 5.0, None, 1) == pytest.approx(1 / (5.0 * 0.012))


def test_tables_have_every_part_mode_and_rate() -> None:
    costs = {mode: dict.fromkeys(PARTS, COST) for mode in ("default", "tuned")}
    assert len(cost_table(costs).splitlines()) == 1 + 2 * len(PARTS)
    lines = replica_table(costs, [11.4, 32.5]).splitlines()
    assert len(lines) == 1 + 2 * 3
    # 70 % of 11.4 tasks a second, 136 ms each.
    assert "0.92" in lines[1]
    assert "not streamed" in lines[-1]
