"""What `benchmarks.engine` found: ratios, tables, panels of the plot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.engine.in_process import ENGINE
from benchmarks.harness.report import Panel, grouped, log_axis, middle, ratios, table


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
    """How many tasks a peer answered at once as it did alone."""

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
class Report:
    """Everything that was measured. ``about`` says on what and with which settings."""

    about: dict[str, Any]
    rows: list[Row]
    same_answers: list[SameAnswers]
    copy_bandwidth: float | None
    floor: list[FloorRow]

    def ratios(self) -> dict[tuple[int, str], float]:
        """How many times as fast as each peer the engine was, by number of tasks and peer."""
        return ratios(
            self.rows,
            first=ENGINE,
            peer=lambda row: row.peer,
            case=lambda row: row.tasks,
            turn=lambda row: row.round,
            speed=lambda row: row.tokens_per_s,
        )

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able values."""
        return {
            **self.about,
            "runs": [asdict(row) for row in self.rows],
            "ratios": [
                {"peer": peer, "tasks": tasks, "engine_over_peer": ratio}
                for (tasks, peer), ratio in self.ratios().items()
            ],
            "same_answers": [asdict(same) for same in self.same_answers],
            "copy_bandwidth_bytes_per_s": self.copy_bandwidth,
            "floor": [asdict(row) | {"fraction": row.fraction} for row in self.floor],
        }

    def table(self) -> str:
        """Medians over rounds, for people."""
        found = self.ratios()
        columns: dict[str, Callable[[list[Row]], str]] = {
            "tasks": lambda rows: str(rows[0].tasks),
            "peer": lambda rows: rows[0].peer,
            "tokens/s": lambda rows: f"{middle(rows, lambda r: r.tokens_per_s):.1f}",
            "first token p50": lambda rows: f"{middle(rows, lambda r: r.first_token_p50_s):.3f} s",
            "max": lambda rows: f"{middle(rows, lambda r: r.first_token_max_s):.3f} s",
            "total": lambda rows: f"{middle(rows, lambda r: r.seconds):.2f} s",
            "peak memory": lambda rows: f"{middle(rows, _mebibytes):.0f} MiB",
            "engine": lambda rows: (
                f"{found[rows[0].tasks, rows[0].peer]:.2f}x"
                if (rows[0].tasks, rows[0].peer) in found
                else ""
            ),
        }
        cases = grouped(self.rows, lambda row: (row.tasks, row.peer)).values()
        parts = [
            table(cases, columns, names=1),
            "engine: how many times as fast as the peer the engine is",
        ]
        if self.same_answers:
            same = {
                "same answers at once as alone": lambda s: s.peer,
                "": lambda s: f"{s.same} of {s.tasks} tasks",
            }
            parts.append(table(self.same_answers, same, names=0))
        if self.copy_bandwidth is not None:
            bandwidth = f"{self.copy_bandwidth / 1e9:.0f} GB/s"
            parts.append(f"memory-bandwidth floor of a decode step, at {bandwidth}:")
            floor: dict[str, Callable[[FloorRow], str]] = {
                "rows": lambda f: str(f.rows),
                "peer": lambda f: f.peer,
                "step": lambda f: f"{f.step_s * 1e3:.2f} ms",
                "floor": lambda f: f"{f.floor_s * 1e3:.2f} ms",
                "reached": lambda f: f"{f.fraction:.0%}",
            }
            parts.append(table(self.floor, floor, names=1))
        return "\n".join(parts)

    def panels(self) -> list[Panel]:
        """Speed, time to first token and memory over the number of tasks."""

        def panel(title: str, value: Callable[[Row], float], scale: str) -> Panel:
            def draw(axes: Any) -> None:
                for peer, own in grouped(self.rows, lambda row: row.peer).items():
                    cases = grouped(own, lambda row: row.tasks)
                    values = [middle(rows, value) for rows in cases.values()]
                    axes.plot(list(cases), values, marker="o", label=peer)
                axes.set(title=title, xlabel="tasks at once", yscale=scale)
                if scale == "linear":
                    axes.set_ylim(bottom=0)
                log_axis(axes, sorted({row.tasks for row in self.rows}))

            return draw

        return [
            panel("tokens/s", lambda row: row.tokens_per_s, "log"),
            panel("time to first token, median task, s", lambda row: row.first_token_p50_s, "log"),
            panel("peak memory, MiB", _mebibytes, "linear"),
        ]


def _mebibytes(row: Row) -> float:
    return row.peak_memory_bytes / 2**20
