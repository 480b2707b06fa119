"""What the soak and overload benchmarks conclude from what they have seen."""

from __future__ import annotations

import pytest

from benchmarks.harness.processes import Sample, growth
from benchmarks.reliability.overload_report import Asked, Found

MiB = 2**20


def test_who_grows_is_found() -> None:
    """Whatever comes and goes, and what happens while a process warms up, does not count."""
    samples = []
    for second in range(0, 300, 5):
        warm = min(second, 60)
        samples += [
            Sample(second, 1, "flat", 0, 100 * MiB + warm * MiB, 20),
            Sample(second, 2, "grows.method", 0, 100 * MiB + second * MiB, 20 + second // 10),
            Sample(second, 1000 + second, "short-lived", 0, 500 * MiB, 900),
        ]
    samples.append(Sample(299, 2, "grows", 0, 400 * MiB, 50))
    grows, flat = growth(samples, warm_up=100, end=300)
    assert (grows.name, flat.name) == ("grows", "flat")
    assert (flat.uss_growth, flat.files_growth) == (0, 0)
    assert 145 * MiB <= grows.uss_growth <= 155 * MiB
    assert grows.files_growth == 15


def flood(refused_in: float = 0.01, wrong: str | None = None) -> list[Asked]:
    """Ten seconds with nine answers and ninety refusals in each."""
    return [
        Asked(
            second + number / 100,
            0.0 if number % 10 == 0 else refused_in,
            200 if number % 10 == 0 else 503,
            wrong,
        )
        for second in range(10)
        for number in range(1, 100)
    ]


def test_what_is_asked_of_a_server() -> None:
    def found(asked: list[Asked], recovery_s: float | None = 1.0) -> Found:
        return Found(0.1, 9.5, 99.0, 10.0, asked, recovery_s)

    good = found(flood())
    assert good.good
    assert good.goodput == pytest.approx(9.0, rel=0.02)
    assert not found(flood(refused_in=0.2)).good
    assert not found(flood(wrong="another answer than before")).good
    assert not found(flood(), recovery_s=None).good
    assert not found(flood(), recovery_s=6.0).good
    assert not found(flood()[: len(flood()) // 2]).good
