"""Tokens a second with speculation over without: ``python -m benchmarks.speculation``.

Two engines that differ in nothing else answer the same tasks in one process, in turns (A B A B):
summaries, edits of code, extraction, structured output and chat, each greedy and sampled at
temperature 0.7, and all of them shuffled. ``--model-dir`` is a directory that
``python -m demo.smollm2 DIRECTORY`` has written, or another model's. Prints a table; writes
``speculation.json`` and ``speculation.png``.

Exits with 1 if an answer is not the same on both engines.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import Literal

from benchmarks.harness import command, report
from benchmarks.harness.engine_api import Engine, EngineConfig
from benchmarks.harness.load import at_once
from benchmarks.harness.report import say
from benchmarks.speculation.measure import (
    OFF,
    ON,
    AnswersDifferError,
    Row,
    cases,
    compare,
)
from benchmarks.speculation.report import panels, text, to_json
from benchmarks.speculation.workloads import MODEL
from benchmarks.workloads.real_texts import WORKLOADS
from schema.task import Task


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    load = report.warn_if_busy("tokens a second")
    with ExitStack() as stack:
        engines: dict[str, Engine] = {}
        for name in (OFF, ON):
            say(f"loading the engine with speculation {name}")
            engines[name] = stack.enter_context(closing(Engine(_config(options, name))))
        about = report.about("speculation", options, "torch", "transformers")
        about["load_before"] = load
        about["engines"] = {name: engine.card() for name, engine in engines.items()}
        try:
            rows = _measure(options, engines)
        except AnswersDifferError as error:
            sys.exit(f"an answer with speculation differs from the one without:\n{error}")
    print(text(rows))
    title = f"speculation, {options.dtype}, {options.threads} threads: tokens a second, on over off"
    report.write(
        options.out, "speculation", about | to_json(rows), panels(rows), size=(10, 4), title=title
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.speculation", __doc__)
    names, add, counts = list(WORKLOADS), parser.add_argument, command.numbers(int)
    add("--model-dir", required=True, metavar="DIR", help="of python -m demo.smollm2, for example")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    add("--clients", type=counts, default=[1, 4, 16], help="1,4,16")
    add("--workloads", nargs="+", default=names, choices=names, metavar="WORKLOAD")
    add("--tasks", type=int, default=16, help="of each half of a workload; more for more clients")
    add("--rounds", type=int, default=3)
    add("--mix", action=argparse.BooleanOptionalAction, default=True, help="all shuffled as well")
    return parser.parse_args(arguments)


def _config(options: argparse.Namespace, speculation: Literal["on", "off"]) -> EngineConfig:
    return EngineConfig(
        model=options.model_dir,
        model_id=MODEL,
        dtype=options.dtype,
        threads=options.threads,
        max_sequences=max(options.clients),
        kv_cache_tokens=1024 * max(options.clients),
        local_files_only=True,
        speculation=speculation,
    )


def _measure(options: argparse.Namespace, engines: dict[str, Engine]) -> list[Row]:
    rows: list[Row] = []
    everything = cases(options.workloads, options.clients, options.tasks, mix=options.mix)
    for number, case in enumerate(everything):
        if number == 0:  # kernels are compiled, and memory is taken
            warm_up = case.make(options.workloads, "warm-up")[: case.clients]
            for engine in engines.values():
                _run(engine, warm_up, case.clients)
        for row in compare(engines, case, options.workloads, options.rounds, _load):
            rows.append(row)
            say(
                f"{row.clients} clients, {row.workload}, {row.half}, round {row.round + 1} of "
                f"{options.rounds}, {row.speculation}: {row.tokens / row.seconds:.1f} tokens/s "
                f"(load {row.load:.1f})"
            )
    return rows


def _run(engine: Engine, tasks: Sequence[Task], clients: int) -> None:
    asyncio.run(at_once(tasks, clients, engine.run))


def _load() -> float:
    return os.getloadavg()[0]


if __name__ == "__main__":
    main()
