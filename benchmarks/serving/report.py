"""What was found, as a table, a JSON file and a picture."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine.report import aligned, say
from benchmarks.harness.metrics import Spread, Summary
from benchmarks.serving.equality import Equality


@dataclass(frozen=True)
class Row:
    """One load on one server in one round; ``clients`` or ``rate`` says which."""

    peer: str
    workload: str
    clients: int | None
    rate: float | None
    round: int
    summary: Summary

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
    """Everything that was measured. ``about`` says on what; ``skipped`` says who did not run."""

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
            "ratios": self.ratios(),
            "equal_answers": [asdict(same) | {"holds": same.equality.holds} for same in self.same],
        }

    def ratios(self) -> list[dict[str, Any]]:
        """How many times the throughput of each server the first one had: medians over rounds."""
        found = []
        for workload in self._workloads():
            for load in self._loads(workload):
                first, *others = self._peers()
                mine = {r.round: r.summary.tokens_per_s for r in self._of(first, workload, load)}
                for peer in others:
                    each = [
                        mine[row.round] / row.summary.tokens_per_s
                        for row in self._of(peer, workload, load)
                        if row.round in mine and row.summary.tokens_per_s
                    ]
                    if each:
                        found.append(
                            {
                                "peer": peer,
                                "workload": workload,
                                "load": load,
                                "ratio": median(each),
                            }
                        )
        return found

    def table(self) -> str:
        """Medians over rounds, for people."""
        parts = []
        ratios = {(r["peer"], r["workload"], r["load"]): r["ratio"] for r in self.ratios()}
        for workload in self._workloads():
            head = ["load", "server", "tokens/s", "first is", "req/s", "good/s", *_LATENCIES]
            lines = [[*head, "errors"]]
            for load in self._loads(workload):
                for peer in self._peers():
                    if rows := self._of(peer, workload, load):
                        ratio = ratios.get((peer, workload, load))
                        lines.append(_line(load, peer, rows, ratio))
            parts += [f"{workload}:", aligned(lines, names=1)]
        parts.append("good: kept the target of " + self.about["target_text"])
        if len(self._peers()) > 1:
            parts.append(f"first is: how many times this server's tokens/s {self._peers()[0]} has")
        parts.append("ms: p50, p95, p99; >: longer, as the measurement ended before")
        if self.same:
            parts.append("equal answers, alone and in a crowd:")
            lines = [["", s.peer, s.workload, str(s.equality), _promise(s)] for s in self.same]
            parts.append(aligned(lines, names=1))
        parts += [f"skipped: {peer}: {why}" for peer, why in self.skipped.items()]
        return "\n".join(parts)

    def plot(self, file: Path) -> bool:
        """Latency against load, a curve for each server; False without matplotlib."""
        try:
            matplotlib = importlib.import_module("matplotlib")
        except ModuleNotFoundError:
            return False
        matplotlib.use("Agg")
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
        panels = [
            (workload, kind)
            for workload in self._workloads()
            for kind in dict.fromkeys(kind for kind, _ in self._loads(workload))
        ]
        size = (5 * len(_CURVES), 4 * len(panels) + 0.8)
        figure, grid = pyplot.subplots(
            len(panels), len(_CURVES), figsize=size, layout="constrained", squeeze=False
        )
        for (workload, kind), axes in zip(panels, grid, strict=True):
            for axis, (title, value) in zip(axes, _CURVES.items(), strict=True):
                for peer in self._peers():
                    axis.plot(*self._curve(peer, workload, kind, value), marker="o", label=peer)
                unit = "clients" if kind == "clients" else "requests/s asked"
                axis.set(title=f"{workload}: {title}", xlabel=unit, xscale="log", yscale="log")
                ticks = [amount for name, amount in self._loads(workload) if name == kind]
                axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
                axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
                axis.grid(alpha=0.3)
        figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        figure.suptitle(self.about["title"])
        figure.savefig(file, dpi=110)
        pyplot.close(figure)
        return True

    def save(self, directory: Path) -> list[Path]:
        """Write ``serving.json`` and, where it can be drawn, ``serving.png``; what there is now."""
        directory.mkdir(parents=True, exist_ok=True)
        data, picture = directory / "serving.json", directory / "serving.png"
        data.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        if self.rows and not self.plot(picture):
            say("no picture: that needs matplotlib")
            return [data]
        return [data, picture] if self.rows else [data]

    def _curve(
        self, peer: str, workload: str, kind: str, value: Callable[[Summary], float | None]
    ) -> tuple[list[float], list[float]]:
        points = []
        for load in self._loads(workload):
            found = [value(row.summary) for row in self._of(peer, workload, load)]
            known = [one for one in found if one]
            if load[0] == kind and known:
                points.append((load[1], median(known)))
        return [x for x, _ in points], [y for _, y in points]

    def _peers(self) -> list[str]:
        return list(dict.fromkeys(row.peer for row in self.rows))

    def _workloads(self) -> list[str]:
        return list(dict.fromkeys(row.workload for row in self.rows))

    def _loads(self, workload: str) -> list[tuple[str, float]]:
        return sorted({row.load for row in self.rows if row.workload == workload})

    def _of(self, peer: str, workload: str, load: tuple[str, float]) -> list[Row]:
        return [r for r in self.rows if (r.peer, r.workload, r.load) == (peer, workload, load)]


_LATENCIES: dict[str, Callable[[Summary], Spread]] = {
    "first token, ms": lambda s: s.first_token,
    "each further, ms": lambda s: s.per_token,
}
_CURVES: dict[str, Callable[[Summary], float | None]] = {
    "tokens/s": lambda s: s.tokens_per_s,
    "first token p50, s": lambda s: s.first_token.p50,
    "each further token p50, s": lambda s: s.per_token.p50,
}


def _line(
    load: tuple[str, float], peer: str, rows: Sequence[Row], ratio: float | None
) -> list[str]:
    def middle(value: Callable[[Summary], float]) -> float:
        return median(value(row.summary) for row in rows)

    kind, amount = load
    return [
        f"{amount:g} clients" if kind == "clients" else f"{amount:g}/s",
        peer,
        f"{middle(lambda s: s.tokens_per_s):.1f}",
        "" if ratio is None else f"{ratio:.2f}x",
        f"{middle(lambda s: s.requests_per_s):.2f}",
        f"{middle(lambda s: s.goodput_per_s):.2f}",
        *(_times([of(row.summary) for row in rows]) for of in _LATENCIES.values()),
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
