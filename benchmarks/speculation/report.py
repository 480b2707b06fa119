"""What `benchmarks.speculation` found: ratios, a table, panels of the plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from benchmarks.harness.report import Panel, grouped, table
from benchmarks.speculation.measure import OFF, ON, Row
from benchmarks.speculation.workloads import MIX
from benchmarks.workloads.real_texts import HALVES

WHOLE = "whole"
_ONE_CLIENT = {
    "summary": 2.0,
    "code edit": 1.5,
    "extraction": 1.6,
    "structured output": 1.8,
    "chat": 0.98,
}
_MANY_CLIENTS, _MANY_LEAST, _MANY_MIX = 16, 0.98, 1.1


def target(workload: str, clients: int) -> float | None:
    """How many times as fast speculation has to be; None where no target was set."""
    if clients == 1:
        return _ONE_CLIENT.get(workload)
    if clients != _MANY_CLIENTS:
        return None
    return _MANY_MIX if workload == MIX else _MANY_LEAST


@dataclass(frozen=True)
class Compared:
    """A case with speculation and without, over all rounds.

    Attributes:
        half: greedy or sampled; or both, as one.
        off, on: tokens a second.
        ratios: of each round, tokens a second with speculation over without.
        per_step: tokens of a decode step, with speculation; None where steps are not counted.
    """

    workload: str
    half: str
    clients: int
    off: float
    on: float
    ratios: list[float]
    per_step: float | None
    proposed: int
    accepted: int

    @property
    def ratio(self) -> float:
        """The median over the rounds."""
        return median(self.ratios)

    @property
    def target(self) -> float | None:
        """Targets are for both halves together."""
        return None if self.half in HALVES else target(self.workload, self.clients)


def compared(rows: Sequence[Row]) -> list[Compared]:
    """Each workload's halves, then the whole of it."""
    found = []
    for (clients, workload), own in grouped(rows, lambda row: (row.clients, row.workload)).items():
        halves = grouped(own, lambda row: row.half)
        if len(halves) > 1:
            found += [_compared(workload, half, clients, part) for half, part in halves.items()]
        found.append(_compared(workload, WHOLE, clients, own))
    return found


def _compared(workload: str, half: str, clients: int, rows: Sequence[Row]) -> Compared:
    sides = grouped(rows, lambda row: row.speculation)
    rounds = [
        {name: _speed(part) for name, part in grouped(own, lambda r: r.speculation).items()}
        for own in grouped(rows, lambda row: row.round).values()
    ]
    ratios = [speeds[ON] / speeds[OFF] for speeds in rounds if ON in speeds and OFF in speeds]
    steps = sum(row.decode_steps for row in sides[ON])
    return Compared(
        workload=workload,
        half=half,
        clients=clients,
        off=_speed(sides[OFF]),
        on=_speed(sides[ON]),
        ratios=ratios,
        per_step=sum(row.tokens for row in sides[ON]) / steps if steps else None,
        proposed=sum(row.drafts_proposed for row in sides[ON]),
        accepted=sum(row.drafts_accepted for row in sides[ON]),
    )


def _speed(rows: Sequence[Row]) -> float:
    return sum(row.tokens for row in rows) / sum(row.seconds for row in rows)


def to_json(rows: Sequence[Row]) -> dict[str, Any]:
    """All runs, and what they say, as JSON-able values."""
    return {
        "runs": [asdict(row) for row in rows],
        "compared": [
            asdict(case) | {"ratio": case.ratio, "target": case.target} for case in compared(rows)
        ],
    }


def text(rows: Sequence[Row]) -> str:
    """A table for people."""
    columns: dict[str, Callable[[Compared], str]] = {
        "clients": lambda c: str(c.clients),
        "workload": lambda c: f"{c.workload}, {c.half}",
        "off": lambda c: f"{c.off:.1f}",
        "on": lambda c: f"{c.on:.1f}",
        "ratio": lambda c: f"{c.ratio:.2f}x",
        "rounds": lambda c: f"{min(c.ratios):.2f} to {max(c.ratios):.2f}",
        "target": lambda c: f"{c.target:.2f}x" if c.target else "",
        "": lambda c: ("reached" if c.ratio >= c.target else "missed") if c.target else "",
        "tokens a step": lambda c: f"{c.per_step:.2f}" if c.per_step else "",
        "proposed": lambda c: str(c.proposed),
        "accepted": lambda c: str(c.accepted),
    }
    return "\n".join(
        [
            "tokens a second without and with speculation, medians and extremes over the rounds",
            table(compared(rows), columns, names=1),
        ]
    )


def panels(rows: Sequence[Row]) -> list[Panel]:
    """For each number of clients the ratios of all workloads, and their targets."""

    def panel(clients: int, cases: list[Compared]) -> Panel:
        workloads = list(grouped(cases, lambda c: c.workload))

        def draw(axes: Any) -> None:
            for place, (half, own) in enumerate(grouped(cases, lambda c: c.half).items()):
                spots = [workloads.index(case.workload) + 0.27 * (place - 1) for case in own]
                least = [case.ratio - min(case.ratios) for case in own]
                most = [max(case.ratios) - case.ratio for case in own]
                ratios = [case.ratio for case in own]
                axes.bar(spots, ratios, 0.25, yerr=[least, most], label=half)
            for case in cases:
                if case.target is not None:
                    spot = workloads.index(case.workload)
                    axes.hlines(case.target, spot - 0.4, spot + 0.4, "black", label="target")
            axes.axhline(1.0, color="grey", linewidth=0.8)
            axes.set_xticks(range(len(workloads)), workloads, rotation=20)
            axes.set(title=f"{clients} client{'s' if clients > 1 else ''}", ylabel="on over off")

        return draw

    by_clients = grouped(compared(rows), lambda case: case.clients)
    return [panel(clients, own) for clients, own in by_clients.items()]
