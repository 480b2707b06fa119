"""What `benchmarks.engine.products` found: a table, a JSON file and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.engine.report import aligned, pyplot


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


def table(machine: Machine, rows: Sequence[Row]) -> str:
    """For people."""
    peaks = ", ".join(f"{name} {flops / 1e9:.0f}" for name, flops in machine.flops.items())
    lines = [
        [
            "rows",
            "weights",
            "products",
            "roofline",
            "reached",
            "GFLOP/s",
            "of peak",
            "GB/s",
            "of read",
        ]
    ]
    for row in rows:
        speed = row.flop / row.seconds
        bandwidth = row.weight_bytes / row.seconds
        lines.append(
            [
                str(row.rows),
                row.path,
                f"{row.seconds * 1e3:.1f} ms",
                f"{row.roofline_s(machine) * 1e3:.1f} ms",
                f"{row.roofline_s(machine) / row.seconds:.0%}",
                f"{speed / 1e9:.0f}",
                f"{speed / machine.flops[row.dtype]:.0%}",
                f"{bandwidth / 1e9:.1f}",
                f"{bandwidth / machine.bandwidth:.0%}",
            ]
        )
    header = f"peak in GFLOP/s: {peaks}; reading {machine.bandwidth / 1e9:.1f} GB/s"
    return "\n".join([header, aligned(lines, names=1)])


def save(
    directory: Path, about: Mapping[str, Any], machine: Machine, rows: Sequence[Row]
) -> list[Path]:
    """Write ``products.json`` and, if it can be drawn, ``products.png``; returns both."""
    directory.mkdir(parents=True, exist_ok=True)
    data, picture = directory / "products.json", directory / "products.png"
    report = {**about, "machine": asdict(machine), "runs": [asdict(row) for row in rows]}
    data.write_text(json.dumps(report, indent=1) + "\n")
    return [data, picture] if _plot(picture, machine, rows) else [data]


def _plot(file: Path, machine: Machine, rows: Sequence[Row]) -> bool:
    """Time a row, and the share of the roofline; False where matplotlib is not installed."""
    if (plt := pyplot()) is None:
        return False
    figure, (times, shares) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for path in dict.fromkeys(row.path for row in rows):
        own = [row for row in rows if row.path == path]
        counts = [row.rows for row in own]
        (line,) = times.plot(counts, [row.seconds * 1e3 for row in own], marker="o", label=path)
        roofline = [row.roofline_s(machine) * 1e3 for row in own]
        times.plot(counts, roofline, linestyle=":", color=line.get_color())
        shares.plot(counts, [row.roofline_s(machine) / row.seconds for row in own], marker="o")
    times.set(title="products of a forward, ms (dotted: roofline)", yscale="log")
    shares.set(title="share of the roofline", ylim=(0, 1.05))
    for axis in (times, shares):
        axis.set(xlabel="rows", xscale="log")
        axis.set_xticks(sorted({row.rows for row in rows}))
        axis.get_xaxis().set_major_formatter(lambda value, _: f"{value:.0f}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True
