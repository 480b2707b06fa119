"""What a benchmark found: text tables, one JSON file and one plot, all written in the same way."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

RowT = TypeVar("RowT")
Panel = Callable[[Any], object]
"""Draws into one of matplotlib's axes."""

_QUIET_LOAD = 0.5  # running processes, averaged over a minute


def say(text: str) -> None:
    """Tell how far a benchmark is, beside its output."""
    print(text, file=sys.stderr, flush=True)


def warn_if_busy(compared: str) -> float:
    """The machine's load now, with a warning where others work on it."""
    load = os.getloadavg()[0]
    if load > _QUIET_LOAD:
        say(f"the machine is busy (load {load:.1f}): {compared} cannot be compared")
    return load


def about(benchmark: str, options: argparse.Namespace, *packages: str) -> dict[str, Any]:
    """What stands at the beginning of a JSON file: when, where and with what it was measured."""
    return {
        "benchmark": benchmark,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "options": {
            name: value if isinstance(value, int | float | list | None) else str(value)
            for name, value in vars(options).items()
        },
        "machine": platform.machine(),
        "load_average": os.getloadavg()[0],
        "versions": {name: version(name) for name in packages},
    }


def aligned(lines: Sequence[Sequence[str]], names: int | None = None) -> str:
    """A table as text. Columns are aligned to the right, except the one with the names."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = [
            cell.ljust(width) if column == names else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def table(
    rows: Iterable[RowT], columns: Mapping[str, Callable[[RowT], str]], names: int | None = None
) -> str:
    """A table with a line for each row; the keys of ``columns`` are its head."""
    lines = [[show(row) for show in columns.values()] for row in rows]
    return aligned([list(columns), *lines], names)


def grouped(rows: Iterable[RowT], key: Callable[[RowT], Any]) -> dict[Any, list[RowT]]:
    """Rows by key, in the order in which the keys come."""
    found: dict[Any, list[RowT]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def middle(rows: Iterable[RowT], value: Callable[[RowT], float]) -> float:
    """The median of a value over rows, usually the rounds of one case."""
    return median(map(value, rows))


def ratios(
    rows: Sequence[RowT],
    *,
    first: str,
    peer: Callable[[RowT], str],
    case: Callable[[RowT], Hashable],
    turn: Callable[[RowT], Hashable],
    speed: Callable[[RowT], float],
) -> dict[tuple[Any, str], float]:
    """How many times as fast as each other peer the first one was, by case and peer.

    Compared are runs of the same round (``turn``), because they were next to each other in time;
    the ratio is the median over the rounds.
    """
    mine = {(case(row), turn(row)): speed(row) for row in rows if peer(row) == first}
    found: dict[tuple[Any, str], list[float]] = {}
    for row in rows:
        own = mine.get((case(row), turn(row)))
        if peer(row) != first and own is not None and speed(row):
            found.setdefault((case(row), peer(row)), []).append(own / speed(row))
    return {key: median(values) for key, values in found.items()}


def write(
    out: Path, name: str, data: Mapping[str, Any], panels: Sequence[Panel] = (), **figure: Any
) -> None:
    """Write ``name.json`` and, where matplotlib is installed, ``name.png``; print what was written.

    Args:
        out: the folder; it is made.
        name: of both files.
        data: JSON-able.
        panels: the plot, see `draw`.
        figure: further arguments of `draw`.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{name}.json"]
    files[0].write_text(json.dumps(data, indent=1) + "\n")
    if panels:
        image = out / f"{name}.png"
        if draw(image, panels, **figure):
            files.append(image)
        else:
            say("no plot: matplotlib is not installed (pip install 'gpt-task-serve[bench]')")
    print("written:", *files)


def draw(
    file: Path,
    panels: Sequence[Panel],
    *,
    columns: int = 1,
    size: tuple[float, float] = (11.0, 4.0),
    title: str | None = None,
    share_x: bool = False,
) -> bool:
    """Draw panels, row by row, with one legend for all; False where matplotlib is not installed.

    Args:
        file: where the plot goes.
        panels: each draws into its own axes.
        columns: how many panels stand beside each other.
        size: of one row of panels, in inches.
        title: above all of them.
        share_x: whether all panels have the same horizontal axis.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        return False
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    rows = -(-len(panels) // columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(size[0], size[1] * rows + 0.8),
        layout="constrained",
        squeeze=False,
        sharex=share_x,
    )
    labels: dict[str, Any] = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        panel(axes)
        axes.grid(alpha=0.3)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    if labels:
        figure.legend(list(labels.values()), list(labels), loc="outside lower center", ncols=4)
    if title:
        figure.suptitle(title)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def log_axis(axes: Any, ticks: Sequence[float]) -> None:
    """A logarithmic horizontal axis with a number at each measured point and nowhere else."""
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), labels=[f"{tick:g}" for tick in ticks])
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
