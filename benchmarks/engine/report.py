"""What the benchmark found: a table, a JSON file and a plot."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.engine.in_process import ENGINE


@dataclass(frozen=True)
class Row:
    """One run: a peer, a number of tasks, a round. ``answers`` is a digest of their texts."""

    peer: str
    tasks: int
    round: int
    asked_tokens: int
    tokens: int
    seconds: float
    tokens_per_s: float
    first_token_p50_s: float
    first_token_max_s: float
    peak_memory_bytes: int
    answers: str


@dataclass(frozen=True)
class SameAnswers:
    """How many tasks a peer answered in the crowd as it did alone."""

    peer: str
    tasks: int
    same: int


@dataclass(frozen=True)
class FloorRow:
    """A peer's decode step beside the time that memory alone needs for it."""

    peer: str
    rows: int
    step_s: float
    floor_s: float
    weight_bytes: int
    kv_bytes: int

    @property
    def fraction(self) -> float:
        """The share of the memory bandwidth that the step reached."""
        return self.floor_s / self.step_s


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as a peer the engine was: the median over rounds."""

    peer: str
    tasks: int
    engine_over_peer: float


@dataclass(frozen=True)
class Report:
    """Everything that was measured. ``about`` says on what and with which settings."""

    about: dict[str, Any]
    rows: list[Row]
    same_answers: list[SameAnswers]
    copy_bandwidth: float | None
    floor: list[FloorRow]

    def ratios(self) -> list[Ratio]:
        """The engine against every peer; none where the engine did not run."""
        ratios = []
        for tasks in self._counts():
            engine = {row.round: row.tokens_per_s for row in self._of(ENGINE, tasks)}
            for peer in self._peers():
                found = [
                    engine[row.round] / row.tokens_per_s
                    for row in self._of(peer, tasks)
                    if peer != ENGINE and row.round in engine
                ]
                if found:
                    ratios.append(Ratio(peer, tasks, median(found)))
        return ratios

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            **self.about,
            "runs": [asdict(row) for row in self.rows],
            "ratios": [asdict(ratio) for ratio in self.ratios()],
            "same_answers": [asdict(same) for same in self.same_answers],
            "copy_bandwidth_bytes_per_s": self.copy_bandwidth,
            "floor": [asdict(row) | {"fraction": row.fraction} for row in self.floor],
        }

    def table(self) -> str:
        """Medians over rounds, for people."""
        ratio = {(r.peer, r.tasks): f"{r.engine_over_peer:.2f}x" for r in self.ratios()}
        lines = [
            ["tasks", "peer", "tokens/s", "first token p50, max", "total", "peak memory", "engine"]
        ]
        for tasks in self._counts():
            for peer in self._peers():
                rows = self._of(peer, tasks)
                if not rows:
                    continue
                first = [_median(rows, lambda r: r.first_token_p50_s)]
                first += [_median(rows, lambda r: r.first_token_max_s)]
                lines.append(
                    [
                        str(tasks),
                        peer,
                        f"{_median(rows, lambda r: r.tokens_per_s):.1f}",
                        f"{first[0]:.3f} s, {first[1]:.3f} s",
                        f"{_median(rows, lambda r: r.seconds):.2f} s",
                        f"{_median(rows, lambda r: r.peak_memory_bytes) / 2**20:.0f} MiB",
                        ratio.get((peer, tasks), ""),
                    ]
                )
        parts = [
            aligned(lines, names=1),
            "engine: how many times as fast as the peer the engine is",
        ]
        if self.same_answers:
            parts.append("same answers in the crowd as alone:")
            parts.append(
                aligned(
                    [["", s.peer, f"{s.same} of {s.tasks} tasks"] for s in self.same_answers],
                    names=1,
                )
            )
        if self.copy_bandwidth is not None:
            parts.append(
                f"memory-bandwidth floor of a decode step, at {self.copy_bandwidth / 1e9:.0f} GB/s:"
            )
            lines = [["rows", "peer", "step", "floor", "reached"]]
            lines += [
                [
                    str(f.rows),
                    f.peer,
                    f"{f.step_s * 1e3:.2f} ms",
                    f"{f.floor_s * 1e3:.2f} ms",
                    f"{f.fraction:.0%}",
                ]
                for f in self.floor
            ]
            parts.append(aligned(lines, names=1))
        return "\n".join(parts)

    def plot(self, file: Path) -> bool:
        """Draw speed, time to first token and memory; False where matplotlib is not installed."""
        if (plt := pyplot()) is None:
            return False
        panels: list[tuple[str, Callable[[Row], float]]] = [
            ("tokens/s", lambda r: r.tokens_per_s),
            ("time to first token, median task, s", lambda r: r.first_token_p50_s),
            ("peak memory, MiB", lambda r: r.peak_memory_bytes / 2**20),
        ]
        figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.5), layout="constrained")
        counts = self._counts()
        for axis, (title, value) in zip(axes, panels, strict=True):
            for peer in self._peers():
                points = [(n, _median(rows, value)) for n in counts if (rows := self._of(peer, n))]
                axis.plot(*zip(*points, strict=True), marker="o", label=peer)
            axis.set(title=title, xlabel="tasks at once", xscale="log", yscale="log")
            axis.set_xticks(counts, labels=[str(n) for n in counts])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[-1].set_yscale("linear")
        axes[-1].set_ylim(0, 1.1 * max(row.peak_memory_bytes for row in self.rows) / 2**20)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        names = ("geometry", "dtype", "device", "threads")
        figure.suptitle(", ".join(f"{name} {self.about[name]}" for name in names))
        figure.savefig(file, dpi=110)
        plt.close(figure)
        return True

    def save(self, directory: Path) -> list[Path]:
        """Write ``engine.json`` and, where it can be drawn, ``engine.png``; returns what there is
        now.
        """
        directory.mkdir(parents=True, exist_ok=True)
        data, picture = directory / "engine.json", directory / "engine.png"
        data.write_text(json.dumps(self.to_json(), indent=1) + "\n")
        return [data, picture] if self.plot(picture) else [data]

    def _peers(self) -> list[str]:
        return list(dict.fromkeys(row.peer for row in self.rows))

    def _counts(self) -> list[int]:
        return sorted({row.tasks for row in self.rows})

    def _of(self, peer: str, tasks: int) -> list[Row]:
        return [row for row in self.rows if (row.peer, row.tasks) == (peer, tasks)]


def _median(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return median(map(value, rows))


def aligned(lines: Sequence[Sequence[str]], names: int | None = None) -> str:
    """A table as text: columns to the right, but for the one of names, if there is one."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if column == names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def say(text: str) -> None:
    """Tell how far a benchmark is, beside its output."""
    print(text, file=sys.stderr, flush=True)


def pyplot() -> Any | None:
    """matplotlib's, which draws into files; None where it is not installed."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        return None
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")
