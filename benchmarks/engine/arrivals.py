"""Answers and prompts that arrive beside them: ``python -m benchmarks.engine.arrivals``.

Requests arrive at random at an engine in this process, with some values of
`max_stream_wait_steps`, in turns. Prints for each value the time to the first token, for each
further one, and the longest time that an answer stood still; writes ``arrivals.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import command, report
from benchmarks.harness.client import Answer, Endpoint
from benchmarks.harness.engine_api import Engine, EngineClient, EngineConfig
from benchmarks.harness.load import Load, run
from benchmarks.harness.metrics import Spread, Summary, Target, spread, summary
from benchmarks.harness.models import ServedModel
from benchmarks.harness.report import say
from benchmarks.harness.served_models import geometry_names, make_model
from benchmarks.workloads.jobs import jobs

_RAMP_S = 8.0
_TARGET = Target(5.0, 0.25)


@dataclass(frozen=True)
class Row:
    """One value at one rate in one round. ``stood_still``: the longest pause of each answer."""

    wait_steps: int | None
    rate: float
    round: int
    measured: Summary
    stood_still: Spread


def longest_pause(answer: Answer) -> float | None:
    """Seconds between two pieces of its text; None if there are fewer."""
    return max((b - a for (a, _), (b, _) in pairwise(answer.deltas)), default=None)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    load = report.warn_if_busy("values")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        model = make_model(options.geometry, options.dtype, options.model_dir or Path(folder))
        for number in range(options.rounds):
            for steps in options.wait_steps:
                rows += _measure(model, steps or None, number, options)
    print(_table(rows))
    data = report.about("arrivals", options, "torch", "transformers") | {"load_before": load}
    report.write(options.out, "arrivals", data | {"rows": [asdict(row) for row in rows]})


def _measure(
    model: ServedModel, steps: int | None, number: int, options: argparse.Namespace
) -> list[Row]:
    config = EngineConfig(
        model=model.source,
        model_id="benchmark",
        dtype=model.dtype,  # type: ignore[arg-type]
        threads=options.threads,
        max_sequences=64,
        kv_cache_tokens=64 * 1024,
        max_stream_wait_steps=steps,
        local_files_only=True,
    )
    rows = []
    with closing(Engine(config)) as engine:
        client = EngineClient(engine, Endpoint("", "benchmark", "tasks"))
        for rate in options.rates:
            source = jobs("text", model, f"arrivals {number} {steps} {rate}")
            found = asyncio.run(run(client, Load(None, rate, _RAMP_S, options.seconds), source))
            pauses = [p for answer in found.answers if (p := longest_pause(answer)) is not None]
            rows.append(Row(steps, rate, number, summary(found, _TARGET), spread(pauses)))
            say(f"max_stream_wait_steps {steps}, {rate:g} requests/s, round {number + 1}")
    return rows


def _table(rows: Sequence[Row]) -> str:
    def of(pick: Callable[[Row], Spread]) -> Callable[[Row], str]:
        return lambda row: ", ".join(
            "?" if each is None else f"{1000 * each:.0f}" for each in (pick(row).p50, pick(row).p95)
        )

    columns: dict[str, Callable[[Row], str]] = {
        "requests/s": lambda row: f"{row.rate:g}",
        "max_stream_wait_steps": lambda row: str(row.wait_steps),
        "tokens/s": lambda row: f"{row.measured.tokens_per_s:.1f}",
        "first token": of(lambda row: row.measured.first_token),
        "each further": of(lambda row: row.measured.per_token),
        "longest pause": of(lambda row: row.stood_still),
    }
    ordered = sorted(rows, key=lambda row: (row.rate, row.wait_steps or 0, row.round))
    return "ms: p50, p95\n" + report.table(ordered, columns)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.engine.arrivals", __doc__)
    add, numbers = parser.add_argument, command.numbers
    add("--geometry", default="qwen2.5-0.5b", choices=geometry_names())
    add("--dtype", choices=["bfloat16", "float16", "float32"])
    add("--model-dir", type=Path, metavar="DIR", help="keep the random model here")
    add("--rates", type=numbers(float), default=[0.5, 1.0], metavar="0.5,1")
    add("--wait-steps", type=numbers(int), default=[3, 0], metavar="3,0", help="0: no limit")
    add("--rounds", type=int, default=2)
    add("--seconds", type=float, default=40.0, help="of each measurement (40)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="CPU threads")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
