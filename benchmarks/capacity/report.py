"""What the simulation found: tables, ``capacity.json``, plots."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.capacity.controller import LOOP_S, control
from benchmarks.capacity.costs import Measured
from benchmarks.capacity.sweep import FIRST_TOKEN_S, MODES, REPLICAS, Row
from benchmarks.engine.report import aligned

_INGRESSES = (1, 10, 100)
_STYLE = {"default": "--", "tuned": "-"}
_SIZE = (10, 4)
_DPI = 90
_FEWEST_MS = 1.0


def seconds(value: float | None) -> str:
    """A time for people."""
    if value is None:
        return "none"
    return f"{value * 1e3:.0f} ms" if value < 1 else f"{value:.1f} s"


def rows_table(rows: Sequence[Row]) -> str:
    """A line for each run: who is how busy, and what clients see."""
    parts = ("proxy", "ingress", "relay", "preprocessor", "network", "object store", "controller")
    named = ("workload", "mode", "replicas", "ingresses", "proxies", "preproc.")
    lines = [[*named, *parts, "fullest", "good/s", "offered/s", "TTFT p50", "p95"]]
    for row in rows:
        layout = row.layout
        lines.append(
            [
                f"{row.engine}: {row.workload}",
                row.mode,
                *(
                    str(number)
                    for number in (
                        layout.replicas,
                        layout.ingresses,
                        layout.proxies,
                        layout.preprocessors,
                    )
                ),
                *(f"{row.busy[part]:.0%}" for part in parts),
                row.first,
                f"{row.goodput_per_s:.0f}",
                f"{row.offered_per_s:.0f}",
                seconds(row.first_token_p50_s),
                seconds(row.first_token_p95_s),
            ]
        )
    return aligned(lines, names=2)


def saturation_table(found: Sequence[dict[str, Any]]) -> str:
    """For how many replicas one process of a part is enough."""

    def number(value: float | None) -> str:
        return "any" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"

    parts = ("proxy", "ingress", "preprocessor")
    lines = [["engine", "workload", "mode", *parts]]
    for one in found:
        named = [one["engine"], one["workload"], one["mode"]]
        lines.append([*named, *(number(one[part]) for part in parts)])
    return aligned(lines, names=3)


def controller_rows(measured: Measured) -> list[dict[str, Any]]:
    """The controller of many replicas, for some numbers of ingresses, with and without scaling."""
    found = []
    for scaling in (False, True):
        for ingresses in _INGRESSES if scaling else (1,):
            for replicas in (*REPLICAS, 2000, 3000):
                one = control(measured.controller, replicas, ingresses, scaling=scaling)
                found.append(
                    {
                        "replicas": replicas,
                        "ingresses": ingresses,
                        "scaling": scaling,
                        "busy": one.busy,
                        "loop_s": one.loop_s,
                        "report_delay_s": one.delay_s,
                    }
                )
    return found


def controller_table(found: Sequence[dict[str, Any]]) -> str:
    """How busy the controller is, how long a round of its loop takes."""
    lines = [["replicas", "ingresses", "replicas change", "busy", "a round", "a message waits"]]
    lines += [
        [
            str(one["replicas"]),
            str(one["ingresses"]),
            "yes" if one["scaling"] else "no",
            f"{one['busy']:.0%}",
            seconds(one["loop_s"]),
            seconds(one["report_delay_s"]),
        ]
        for one in found
    ]
    return aligned(lines, names=0)


def save(data: dict[str, Any], out: Path) -> Path:
    """Write ``capacity.json``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "capacity.json"
    path.write_text(json.dumps(data, indent=1) + "\n")
    return path


def plots(
    rows: Sequence[Row],
    goodput: Sequence[tuple[str, float, Row]],
    controlled: Sequence[dict[str, Any]],
    out: Path,
) -> list[Path]:
    """Draw what `main` has computed; raises ModuleNotFoundError without matplotlib."""
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    out.mkdir(parents=True, exist_ok=True)
    text = [row for row in rows if (row.engine, row.workload) == ("8b-bf16", "text")]
    drawn: dict[str, Callable[[Any], None]] = {
        "busy": partial(_busy, rows=text),
        "first-token": partial(_first_token, rows=rows),
        "goodput": partial(_goodput, goodput=goodput),
        "controller": partial(_controller, controlled=controlled),
    }
    files = []
    for name, draw in drawn.items():
        figure, axes = pyplot.subplots(1, 2, figsize=_SIZE, layout="constrained")
        draw(axes)
        files.append(out / f"capacity-{name}.png")
        figure.savefig(files[-1], dpi=_DPI)
        pyplot.close(figure)
    return files


def _busy(axes: Any, rows: Sequence[Row]) -> None:
    parts = ("ingress", "proxy", "relay", "controller")
    for axis, scaled in zip(axes, (False, True), strict=True):
        for mode in MODES:
            own = [row for row in rows if row.mode == mode and row.scaled == scaled]
            for number, part in enumerate(parts):
                axis.plot(
                    [row.layout.replicas for row in own],
                    [100 * row.busy[part] for row in own],
                    _STYLE[mode],
                    marker="o",
                    markersize=3,
                    color=f"C{number}",
                    label=f"{part}, {mode}",
                )
        axis.axhline(100, color="black", linewidth=0.8)
        axis.set(xscale="log", xlabel="model replicas", ylabel="busy, % of each process")
        axis.set_title("as many of each as needed" if scaled else "one ingress, one proxy")
        axis.set_ylim(0, 150)
        axis.set_xlim(0.8, 1.3 * max(REPLICAS))
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(fontsize=7, loc="lower right")


def _first_token(axes: Any, rows: Sequence[Row]) -> None:
    for axis, mode in zip(axes, MODES, strict=True):
        names = dict.fromkeys(row.workload for row in rows)
        for number, name in enumerate(names):
            for scaled, style in ((False, ":"), (True, "-")):
                own = [
                    row
                    for row in rows
                    if (row.engine, row.workload, row.mode, row.scaled)
                    == ("8b-bf16", name, mode, scaled)
                    and row.first_token_p95_s is not None
                ]
                axis.plot(
                    [row.layout.replicas for row in own],
                    [max(_FEWEST_MS, 1e3 * (row.first_token_p95_s or 0.0)) for row in own],
                    style,
                    marker="o",
                    markersize=3,
                    color=f"C{number}",
                    label=name if scaled else None,
                )
        axis.set(xscale="log", yscale="log", xlabel="model replicas")
        axis.set(ylabel="time to the first bytes, p95, ms")
        axis.set_title(f"{mode} mode; dotted: one of each part")
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(fontsize=7)


def _goodput(axes: Any, goodput: Sequence[tuple[str, float, Row]]) -> None:
    for axis, mode in zip(axes, MODES, strict=True):
        for label in dict.fromkeys(label for label, _, _ in goodput):
            own = [row for name, _, row in goodput if name == label]
            if own[0].mode == mode:
                x = [row.offered_per_s for row in own]
                axis.plot(x, [row.goodput_per_s for row in own], marker="o", label=label)
        replicas = goodput[0][2].layout.replicas
        limits = axis.get_xlim()
        axis.plot(limits, limits, ":", color="grey", linewidth=0.8)
        axis.set(xlabel="tasks offered a second", ylabel="good answers a second")
        axis.set_title(f"{replicas} replicas, good: first token in {FIRST_TOKEN_S:g} s")
        axis.legend(fontsize=7)
        axis.grid(visible=True, alpha=0.3)


def _controller(axes: Any, controlled: Sequence[dict[str, Any]]) -> None:
    labels = {
        (one["scaling"], one["ingresses"]): (
            f"scaling, {one['ingresses']} ingresses" if one["scaling"] else "fixed number"
        )
        for one in controlled
    }
    for (scaling, ingresses), label in labels.items():
        own = [
            one for one in controlled if (one["scaling"], one["ingresses"]) == (scaling, ingresses)
        ]
        x = [one["replicas"] for one in own]
        axes[0].plot(x, [100 * one["busy"] for one in own], marker="o", label=label)
        axes[1].plot(x, [one["loop_s"] for one in own], marker="o", label=label)
    axes[0].axhline(100, color="black", linewidth=0.8)
    axes[0].set(xscale="log", xlabel="model replicas", ylabel="controller busy, %", ylim=(0, 150))
    axes[1].set(xscale="log", yscale="log", xlabel="model replicas")
    axes[1].set(ylabel=f"a round of the control loop, s (idle: {LOOP_S:g})")
    for axis in axes:
        axis.grid(visible=True, alpha=0.3)
    axes[0].legend(fontsize=7)
