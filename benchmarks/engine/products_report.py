"""What `benchmarks.engine.products` found: a table and panels of a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.report import Panel, grouped, log_axis, table


@dataclass(frozen=True)
class Machine:
    """What this machine can do: operations a second by type, bytes read a second."""

    flops: dict[str, float]
    bandwidth: float

    def best(self, other: Machine) -> Machine:
        """The best of two measurements: others on the machine can only make it seem slow."""
        flops = {name: max(flops, other.flops[name]) for name, flops in self.flops.items()}
        return Machine(flops, max(self.bandwidth, other.bandwidth))


@dataclass(frozen=True)
class Group:
    """The layers of one kind at a number of rows: what they took, and what they need."""

    seconds: float
    dtype: str  # of the arithmetic
    flop: float
    weight_bytes: int

    def roofline_s(self, machine: Machine) -> float:
        """The least time that the machine could take."""
        return max(self.weight_bytes / machine.bandwidth, self.flop / machine.flops[self.dtype])


@dataclass(frozen=True)
class Row:
    """The products of one forward."""

    path: str
    rows: int
    dtype: str  # of most of the arithmetic
    groups: dict[str, Group]

    @property
    def seconds(self) -> float:
        """Of all products."""
        return sum(group.seconds for group in self.groups.values())

    @property
    def flop(self) -> float:
        """Operations, where a multiplication and an addition are two."""
        return sum(group.flop for group in self.groups.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights, as they are held."""
        return sum(group.weight_bytes for group in self.groups.values())

    def roofline_s(self, machine: Machine) -> float:
        """The least time that the machine could take for one layer after the other."""
        return sum(group.roofline_s(machine) for group in self.groups.values())


def text(machine: Machine, rows: Sequence[Row]) -> str:
    """A table for people, and the machine's own speed above it."""
    columns: dict[str, Callable[[Row], str]] = {
        "rows": lambda row: str(row.rows),
        "weights": lambda row: row.path,
        "products": lambda row: f"{row.seconds * 1e3:.1f} ms",
        "roofline": lambda row: f"{row.roofline_s(machine) * 1e3:.1f} ms",
        "reached": lambda row: f"{row.roofline_s(machine) / row.seconds:.0%}",
        "GFLOP/s": lambda row: f"{row.flop / row.seconds / 1e9:.0f}",
        "of peak": lambda row: f"{row.flop / row.seconds / machine.flops[row.dtype]:.0%}",
        "GB/s": lambda row: f"{row.weight_bytes / row.seconds / 1e9:.1f}",
        "of read": lambda row: f"{row.weight_bytes / row.seconds / machine.bandwidth:.0%}",
    }
    peaks = ", ".join(f"{name} {flops / 1e9:.0f}" for name, flops in machine.flops.items())
    header = f"peak in GFLOP/s: {peaks}; reading {machine.bandwidth / 1e9:.1f} GB/s"
    return "\n".join([header, table(rows, columns, names=1)])


def panels(machine: Machine, rows: Sequence[Row]) -> list[Panel]:
    """Time over the number of rows, and the share of the roofline."""
    counts = sorted({row.rows for row in rows})
    paths = grouped(rows, lambda row: row.path)

    def times(axes: Any) -> None:
        for path, own in paths.items():
            numbers = [row.rows for row in own]
            (line,) = axes.plot(numbers, [1e3 * r.seconds for r in own], marker="o", label=path)
            roofline = [1e3 * row.roofline_s(machine) for row in own]
            axes.plot(numbers, roofline, linestyle=":", color=line.get_color())
        axes.set(title="products of a forward, ms (dotted: roofline)", xlabel="rows", yscale="log")
        log_axis(axes, counts)

    def shares(axes: Any) -> None:
        for own in paths.values():
            reached = [row.roofline_s(machine) / row.seconds for row in own]
            axes.plot([row.rows for row in own], reached, marker="o")
        axes.set(title="share of the roofline", xlabel="rows", ylim=(0, 1.05))
        log_axis(axes, counts)

    return [times, shares]
