"""Which runs are made: numbers of replicas, workloads, modes; one process of a part, or enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from benchmarks.capacity.controller import REPORT_S, control
from benchmarks.capacity.costs import Measured, Mode, at
from benchmarks.capacity.scenarios import Engine, Layout, Workload, engines
from benchmarks.capacity.simulation import HAPROXY_THREADS, Graph, Outcome, routing_s, to_begin

REPLICAS = (1, 3, 10, 30, 100, 300, 1000)
MODES: tuple[Mode, ...] = ("default", "tuned")
LOAD = 0.7
"""Of what the engines can do."""
FULL = 0.6
"""Where there is enough of a part, no process of it is busier."""
SLICE = 60
"""Replicas that are simulated at most where every part has grown with them."""
FIRST_TOKEN_S = 2.0
"""A good streamed answer begins within this time."""
WHOLE_S = 10.0
"""A good answer that is not streamed is there within this time."""
_OVERLOADED = 1.6  # there is nothing new to see beyond
HEALTH_EVERY_S = 5.0
"""How often somebody asks each ingress for ``GET /health``."""

TEXT = Workload("text", 128)
WORKLOADS = (
    TEXT,
    Workload("text, same beginnings", 128, beginning=True),
    Workload("text, 8 tokens a message", 128, tokens_per_chunk=8),
    Workload("text, not streamed", 128, tokens_per_chunk=None),
    Workload("pictures", 128, picture="InternVL, 12 MP JPEG"),
)


@dataclass(frozen=True)
class Row:
    """One run. ``busy`` is each part's share of busy time; ``first`` the busiest part."""

    engine: str
    workload: str
    mode: Mode
    scaled: bool
    layout: Layout
    offered_per_s: float
    goodput_per_s: float
    refused: float
    first_token_p50_s: float | None
    first_token_p95_s: float | None
    busy: dict[str, float]
    store_peak_gb: float
    loop_s: float
    report_delay_s: float

    @property
    def first(self) -> str:
        """The busiest part of those that can be too few."""
        return max((one for one in self.busy if one != "engine"), key=lambda one: self.busy[one])


def demands(
    measured: Measured, mode: Mode, workload: Workload, rate: float, replicas: int
) -> dict[str, float]:
    """Seconds of work a second that each part has to do, which is how many of it are needed.

    Args:
        measured: the costs.
        mode: of Ray Serve.
        workload: of all tasks.
        rate: tasks a second.
        replicas: that a task's replica is chosen from.
    """
    costs = measured.modes[mode]
    picture = measured.pictures[workload.picture] if workload.picture else None
    found = {}
    for name, stage in (("proxy", costs.proxy), ("ingress", costs.ingress)):
        told = 0.0 if workload.tokens_per_chunk is None else workload.chunks * stage.chunk
        found[name] = rate * (to_begin(stage, workload) + told)
    found["ingress"] += rate * routing_s(measured, workload, replicas)
    found["ingress"] += rate * (picture.parse if picture else 0.0)
    if mode == "tuned":
        found["proxy"] /= HAPROXY_THREADS
    found["preprocessor"] = rate * (picture.prepare + picture.put) if picture else 0.0
    return found


def beside(measured: Measured, mode: Mode, layout: Layout) -> float:
    """What an ingress does beside tasks: its share of busy time for ``/health`` and reports."""
    share = layout.replicas * measured.modes[mode].health / HEALTH_EVERY_S
    if layout.scaling:
        share += at(measured.controller.handle_made, layout.replicas) / REPORT_S
    return share


def enough(measured: Measured, mode: Mode, workload: Workload, rate: float, number: int) -> Layout:
    """So many processes of each part that none is busier than `FULL`."""
    need = demands(measured, mode, workload, rate, number)
    layout = Layout(number)
    room = max(0.1, FULL - beside(measured, mode, layout))
    return replace(
        layout,
        ingresses=max(1, math.ceil(need["ingress"] / room)),
        proxies=max(layout.nodes, math.ceil(need["proxy"] / FULL)),
        preprocessors=max(1, math.ceil(need["preprocessor"] / FULL)),
    )


def simulate(
    measured: Measured,
    mode: Mode,
    engine: Engine,
    workload: Workload,
    layout: Layout,
    rate: float,
    *,
    scaled: bool,
    seconds: float = 3.0,
    seed: int = 0,
) -> Row:
    """One run, long enough for the tasks to come and go.

    Where every part has grown with the replicas, a slice of all of them is simulated, with its
    share of the tasks; the costs stay those of the whole.
    """
    simulated, share = layout, 1.0
    if scaled and layout.replicas > SLICE:
        share = SLICE / layout.replicas
        simulated = Layout(
            SLICE,
            max(1, round(layout.ingresses * share)),
            max(1, round(layout.proxies * share)),
            max(1, round(layout.preprocessors * share)),
            layout.scaling,
        )
    longest = engine.prefill_s * engine.max_sequences
    longest += workload.tokens * engine.step_s(engine.max_sequences)
    graph = Graph(measured, mode, engine, workload, simulated, layout.replicas, seed)
    outcome: Outcome = graph.run(rate * share, 1.5 * longest, max(seconds, longest))
    outcome.busy["ingress"] += beside(measured, mode, layout)
    controlled = control(
        measured.controller, layout.replicas, layout.ingresses, scaling=layout.scaling
    )
    outcome.busy["controller"] = controlled.busy
    within = WHOLE_S if workload.tokens_per_chunk is None else FIRST_TOKEN_S
    return Row(
        engine=engine.name,
        workload=workload.name,
        mode=mode,
        scaled=scaled,
        layout=layout,
        offered_per_s=rate,
        goodput_per_s=outcome.goodput(within) / share,
        refused=outcome.refused / max(1, len(outcome.tasks)),
        first_token_p50_s=outcome.first_token_s(0.5),
        first_token_p95_s=outcome.first_token_s(0.95),
        busy=outcome.busy,
        store_peak_gb=outcome.store_peak / 1e9,
        loop_s=controlled.loop_s,
        report_delay_s=controlled.delay_s,
    )


def sweep(measured: Measured, numbers: tuple[int, ...] = REPLICAS) -> Iterator[Row]:
    """All workloads in both modes at all numbers of replicas, with one of each part and enough.

    One of each is tried only until a part is overloaded.
    """
    known = engines(measured)
    cases = [("8b-bf16", workload) for workload in WORKLOADS]
    cases += [("8b-int4", TEXT), ("demo", TEXT)]
    for (name, workload), mode, scaled in product(cases, MODES, (False, True)):
        for number in numbers:
            rate = LOAD * number * known[name].tasks_per_s(workload.tokens)
            layout = Layout(number)
            if scaled:
                layout = enough(measured, mode, workload, rate, number)
            yield (
                row := simulate(measured, mode, known[name], workload, layout, rate, scaled=scaled)
            )
            if not scaled and row.busy[row.first] > 1.0:
                break


def goodputs(measured: Measured, replicas: int = 30) -> Iterator[tuple[str, float, Row]]:
    """More and more tasks for some layouts of one cluster: label, load, run."""
    engine = engines(measured)["8b-bf16"]
    most = replicas * engine.tasks_per_s(TEXT.tokens)
    for mode in MODES:
        full = enough(measured, mode, TEXT, most, replicas)
        for ingresses in (1, max(2, full.ingresses // 3), full.ingresses):
            layout = replace(full, ingresses=ingresses)
            for load in (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1.1):
                row = simulate(
                    measured, mode, engine, TEXT, layout, load * most, scaled=ingresses > 1
                )
                yield f"{mode}, {ingresses} ingress replicas", load, row
                if row.busy["ingress"] > _OVERLOADED:
                    break


def saturation(measured: Measured) -> list[dict[str, Any]]:
    """For how many replicas one process of each part is enough, by the costs alone."""
    found = []
    for name, engine in engines(measured).items():
        for workload in WORKLOADS:
            for mode in MODES:
                each = LOAD * engine.tasks_per_s(workload.tokens)
                found.append(
                    {
                        "engine": name,
                        "workload": workload.name,
                        "mode": mode,
                        **{
                            part: _largest(measured, mode, workload, each, part)
                            for part in ("proxy", "ingress", "preprocessor")
                        },
                    }
                )
    return found


def _largest(
    measured: Measured, mode: Mode, workload: Workload, each: float, part: str
) -> float | None:
    """The number of replicas at which one process of a part has no time left; None: never."""

    def busy(number: float) -> float:
        share = demands(measured, mode, workload, each * number, max(1, int(number)))[part]
        whole = Layout(max(1, int(number)))
        return share + (beside(measured, mode, whole) if part == "ingress" else 0.0)

    low, high = 0.0, 1e6
    if busy(high) < 1.0:
        return None
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if busy(middle) < 1.0 else (low, middle)
    return high


def as_json(row: Row) -> dict[str, Any]:
    """A row as it is written."""
    return asdict(row) | {"first": row.first}
