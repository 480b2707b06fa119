"""How the chaos benchmark tells the wait for a replica's start from the rest."""

from __future__ import annotations

from math import inf

import pytest

from benchmarks.reliability.waits import waits, without_replica


@pytest.mark.parametrize(
    ("lives", "gaps"),
    [
        ([], [(0.0, 10.0)]),
        ([(-5.0, inf)], []),
        ([(-5.0, 2.0), (3.0, inf)], [(2.0, 3.0)]),
        ([(-5.0, 2.0), (-5.0, 4.0), (3.0, 6.0)], [(6.0, 10.0)]),
        ([(-5.0, 2.0), (12.0, inf)], [(2.0, 10.0)]),
        ([(1.0, 2.0), (5.0, 5.0)], [(0.0, 1.0), (2.0, 5.0), (5.0, 10.0)]),
    ],
)
def test_when_no_replica_was_live(
    lives: list[tuple[float, float]], gaps: list[tuple[float, float]]
) -> None:
    assert without_replica(lives, 0.0, 10.0) == gaps


def test_a_wait_has_two_parts() -> None:
    found = waits([0.5, 1.0, 6.0, 6.5], [(0.0, 0.75), (2.0, 3.0), (5.5, 7.0)])
    assert [wait.seconds for wait in found] == [0.5, 5.0, 0.5]
    assert [wait.without_replica for wait in found] == [0.25, 1.5, 0.5]
    assert [wait.rest for wait in found] == [0.25, 2.5, 0.0]  # from 3.0 to 5.5
