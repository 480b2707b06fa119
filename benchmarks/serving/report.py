"""What was found, as a table, a JSON file and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness.drafts import Drafts
from benchmarks.harness.metrics import Spread, Summary
from benchmarks.harness.report import aligned, grouped, log_axis, middle, ratios, write
from benchmarks.serving.equality import Equality


@dataclass(frozen=True)
class Row:
    """One load on one server in one round; ``clients`` or ``rate`` says which.

    ``drafts`` were guessed meanwhile; None where the server does not say.
    """

    peer: str
    workload: str
    clients: int | None
    rate: float | None
    round: int
    summary: Summary
    drafts: Drafts | None = None

    @property
    def load(self) -> tuple[str, float]:
        """What was put on the server, to sort by."""
        return ("clients", self.clients) if self.clients is not None else ("rate", self.rate or 0.0)


@dataclass(frozen=True)
class Same:
    """What a server's answers are worth."""

    peer: str
    workload: str
    promises: bool
    equality: Equality


@dataclass(frozen=True)
class Report:
    """Everything that was measured. ``about`` says on what; ``skipped`` why a peer did not run."""

    about: dict[str, Any]
    rows: list[Row]
    same: list[Same]
    skipped: dict[str, str]
    started_s: dict[str, list[float]]

    def to_json(self) -> dict[str, Any]:
        """JSON-able values."""
        return {
            **self.about,
            "skipped": self.skipped,
            "started_s": self.started_s,
            "runs": [asdict(row) for row in self.rows],
            "ratios": [
                {"of": name, "peer": peer, "workload": workload, "load": load, "ratio": ratio}
                for name, value in COMPARED.items()
                for ((workload, load), peer), ratio in self.ratios(value).items()
            ],
            "equal_answers": [asdict(same) | {"holds": same.equality.holds} for same in self.same],
        }

    def ratios(self, value: Callable[[Summary], float | None]) -> dict[tuple[Any, str], float]:
        """How many times a value of each server the first one had: by workload and load, and peer.

        Of the same round, and the median over the rounds; nothing where a value is not known.
        """
        known = [row for row in self.rows if value(row.summary)]
        return ratios(
            known,
            first=self.rows[0].peer if self.rows else "",
            peer=lambda row: row.peer,
            case=lambda row: (row.workload, row.load),
            turn=lambda row: row.round,
            speed=lambda row: value(row.summary) or 0.0,
        )

    def table(self) -> str:
        """Medians over rounds, for people."""
        parts = []
        found = [self.ratios(value) for value in COMPARED.values()]
        for workload, own in grouped(self.rows, lambda row: row.workload).items():
            lines = [_HEAD]
            for load, of_load in sorted(grouped(own, lambda row: row.load).items()):
                for peer, rows in grouped(of_load, lambda row: row.peer).items():
                    lines.append(
                        _line(rows, [each.get(((workload, load), peer)) for each in found])
                    )
            parts += [f"{workload}:", aligned(lines, names=1)]
        parts.append("good: kept the target of " + self.about["target_text"])
        if len({row.peer for row in self.rows}) > 1:
            first = self.rows[0].peer
            parts.append(f"first is: how many times this server's value {first} has; of times p50")
        parts.append("ms: p50, p95, p99; >: longer, as the measurement ended before")
        if self.same:
            parts.append("equal answers, alone and all at once:")
            lines = [["", s.peer, s.workload, str(s.equality), _promise(s)] for s in self.same]
            parts.append(aligned(lines, names=1))
        parts += [f"skipped: {peer}: {why}" for peer, why in self.skipped.items()]
        return "\n".join(parts)

    def save(self, out: Path) -> None:
        """Write ``serving.json`` and ``serving.png``: latency against load, for each server."""
        panels = [
            partial(_curves, own, f"{workload}: {title}", value)
            for (workload, _), own in grouped(self.rows, lambda r: (r.workload, r.load[0])).items()
            for title, value in _CURVES.items()
        ]
        how: dict[str, Any] = {"columns": len(_CURVES), "size": (5.0 * len(_CURVES), 4.0)}
        write(out, "serving", self.to_json(), panels, title=self.about["title"], **how)


COMPARED: dict[str, Callable[[Summary], float | None]] = {
    "tokens_per_s": lambda s: s.tokens_per_s,
    "first_token_p50": lambda s: s.first_token.p50,
    "per_token_p50": lambda s: s.per_token.p50,
}
"""What the first server is compared with the others in."""

_HEAD = ["load", "server", "tokens/s", "first is", "req/s", "good/s", "first token, ms", "first is"]
_HEAD += ["each further, ms", "first is", "drafts right", "errors"]
_CURVES: dict[str, Callable[[Summary], float | None]] = {
    "tokens/s": lambda s: s.tokens_per_s,
    "first token p50, s": lambda s: s.first_token.p50,
    "each further token p50, s": lambda s: s.per_token.p50,
}


def _curves(
    rows: Sequence[Row], title: str, value: Callable[[Summary], float | None], axes: Any
) -> None:
    """A value over the load, one curve for each server."""
    for peer, own in grouped(rows, lambda row: row.peer).items():
        points = []
        for (_, amount), of_load in sorted(grouped(own, lambda row: row.load).items()):
            if known := [one for row in of_load if (one := value(row.summary))]:
                points.append((amount, median(known)))
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=peer)
    unit = "clients" if rows[0].clients is not None else "requests/s asked"
    axes.set(title=title, xlabel=unit, yscale="log")
    log_axis(axes, sorted({row.load[1] for row in rows}))


def load_name(load: tuple[str, float]) -> str:
    """A load in words."""
    kind, amount = load
    return f"{amount:g} client{'s' if amount > 1 else ''}" if kind == "clients" else f"{amount:g}/s"


def drafts_of(rows: Sequence[Row]) -> Drafts:
    """The guesses of all rows."""
    return sum((row.drafts for row in rows if row.drafts is not None), Drafts())


def _line(rows: Sequence[Row], found: Sequence[float | None]) -> list[str]:
    """The rounds of a load on a server; ``found`` are its ratios, in the order of `COMPARED`."""
    speed, first, each = ("" if ratio is None else f"{ratio:.2f}x" for ratio in found)
    drafts = drafts_of(rows)
    return [
        load_name(rows[0].load),
        rows[0].peer,
        f"{middle(rows, lambda row: row.summary.tokens_per_s):.1f}",
        speed,
        f"{middle(rows, lambda row: row.summary.requests_per_s):.2f}",
        f"{middle(rows, lambda row: row.summary.goodput_per_s):.2f}",
        _times([row.summary.first_token for row in rows]),
        first,
        _times([row.summary.per_token for row in rows]),
        each,
        str(drafts) if drafts.proposed else "",
        str(sum(sum(row.summary.errors.values()) for row in rows)),
    ]


def _times(spreads: Sequence[Spread]) -> str:
    texts = []
    for name in ("p50", "p95", "p99"):
        known = [value for one in spreads if (value := getattr(one, name)) is not None]
        more = ">" if any(name in one.at_least for one in spreads) else ""
        texts.append(f"{more}{median(known) * 1000:.1f}" if known else "-")
    return " ".join(texts)


def _promise(same: Same) -> str:
    if not same.promises:
        return "promises nothing"
    return "as promised" if same.equality.holds else "PROMISE BROKEN"
