"""What `benchmarks.reliability.overload` measured: the verdict, a table, JSON and a plot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.harness.processes import PARTS
from benchmarks.harness.report import Panel, aligned

GOODPUT, REFUSAL_S, RECOVERY_S = 0.9, 0.1, 5.0
"""What is asked of a server: see `benchmarks.reliability.overload`."""
_QUANTILES = (0.5, 0.99, 1.0)


@dataclass(frozen=True)
class Asked:
    """One task. ``status`` is 0 if the connection failed; ``wrong`` is why its answer is wrong."""

    at: float
    seconds: float
    status: int
    wrong: str | None = None


def answers_per_second(asked: Iterable[Asked], seconds: float) -> float:
    """How many tasks were answered in the last three quarters of a part of the run.

    In the first one there are fewer answers than places: the first tasks have not ended yet.
    """
    filled = seconds / 4
    ended = [one.at + one.seconds for one in asked if one.status == 200]
    return sum(filled < end <= seconds for end in ended) / (seconds - filled)


@dataclass(frozen=True)
class Found:
    """Everything that was measured; rates in tasks a second, times in seconds.

    Attributes:
        work: by part of the run: ``rows`` that the engine computed for and tasks ``waiting`` on
            average, and how many cores each part of the system kept busy.
    """

    usual_s: float
    capacity: float
    offered: float
    seconds: float
    flood: list[Asked]
    recovery_s: float | None
    work: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def goodput(self) -> float:
        """Answers a second while more than that was asked."""
        return answers_per_second(self.flood, self.seconds)

    @property
    def refusals(self) -> list[float]:
        """How long each took, the shortest first."""
        return sorted(one.seconds for one in self.flood if one.status == 503)

    @property
    def wrong(self) -> list[str]:
        """What was neither an answer nor a refusal."""
        return [one.wrong for one in self.flood if one.wrong is not None]

    @property
    def good(self) -> bool:
        """Whether the server keeps what is asked of it."""
        return (
            not self.wrong
            and self.goodput >= GOODPUT * self.capacity
            and _quantile(self.refusals, 0.99) <= REFUSAL_S
            and self.recovery_s is not None
            and self.recovery_s <= RECOVERY_S
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "capacity_per_s": self.capacity,
            "offered_per_s": self.offered,
            "goodput_per_s": self.goodput,
            "goodput_of_capacity": self.goodput / self.capacity,
            "refusal_s": {str(q): _quantile(self.refusals, q) for q in _QUANTILES},
            "recovery_s": self.recovery_s,
            "one_task_alone_s": self.usual_s,
            "work": self.work,
            "statuses": Counter(one.status for one in self.flood),
            "wrong": self.wrong,
            "good": self.good,
            "asked": [asdict(one) for one in self.flood],
        }

    def text(self) -> str:
        """Tables for people."""
        slow = " / ".join(f"{_quantile(self.refusals, q) * 1e3:.0f}" for q in _QUANTILES)
        recovered = "not" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        lines = [
            ["capacity", f"{self.capacity:.1f} tasks/s"],
            ["asked for", f"{self.offered:.0f} tasks/s for {self.seconds:g} s"],
            ["answered", f"{self.goodput:.1f} tasks/s ({self.goodput / self.capacity:.0%})"],
            ["refused in, p50 / p99 / max", f"{slow} ms"],
            ["recovered after", recovered],
            ["neither answer nor refusal", str(len(self.wrong))],
            ["one task alone", f"{self.usual_s:.2f} s"],
        ]
        work = [["", "rows busy", "waiting", *(f"cores: {part}" for part in PARTS)]]
        for name, values in self.work.items():
            means = [f"{values.get(key, 0.0):.1f}" for key in ("rows", "waiting")]
            work.append([name, *means, *(f"{values.get(part, 0.0):.2f}" for part in PARTS)])
        return aligned(lines, names=1) + "\n\n" + aligned(work, names=1)

    def panels(self) -> list[Panel]:
        """Answers and refusals of each second, and how long each refusal took."""
        seconds = range(int(self.seconds) + 1)

        def ended(axes: Any) -> None:
            for status, name in ((200, "answers"), (503, "refusals")):
                count = Counter(int(x.at + x.seconds) for x in self.flood if x.status == status)
                axes.step(seconds, [count[second] for second in seconds], label=name)
            axes.axhline(self.capacity, color="grey", linestyle=":", label="capacity")
            axes.set(ylabel="a second", yscale="symlog", ylim=0)

        def refused(axes: Any) -> None:
            points = [(x.at, x.seconds * 1e3) for x in self.flood if x.status == 503]
            axes.plot(*zip(*points or [(0, 0)], strict=True), ".", markersize=3)
            axes.axhline(REFUSAL_S * 1e3, color="grey", linestyle=":")
            axes.set(xlabel="seconds", ylabel="time until a refusal, ms", ylim=0)

        return [ended, refused]


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
