"""How many replicas the graph holds: ``python -m benchmarks.capacity measure`` and ``simulate``.

``measure`` takes the costs of the graph's parts on this machine, by running them; ``simulate`` puts
1 to 1,000 replicas together from them, and needs nothing but their file. docs/capacity.md has what
came out.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.capacity.costs import MEASURED, Measured
from benchmarks.capacity.measure import PARTS, measure
from benchmarks.capacity.report import (
    controller_rows,
    controller_table,
    plots,
    rows_table,
    saturation_table,
    save,
)
from benchmarks.capacity.sweep import (
    FIRST_TOKEN_S,
    FULL,
    LOAD,
    as_json,
    goodputs,
    saturation,
    sweep,
)
from benchmarks.capacity.validate import table as validation_table
from benchmarks.capacity.validate import validate
from benchmarks.engine.report import say


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two steps; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.step == "measure":
        # So that a server ends with this process.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        measure(options.parts, options.out / "capacity", options.measured)
        return 0
    return _simulate(Measured.load(options.measured), options.out, options.plots)


def _simulate(measured: Measured, out: Path, pictures: Path) -> int:
    validation = validate(measured)
    say(validation_table(validation))
    rows, started = [], time.monotonic()
    for row in sweep(measured):
        rows.append(row)
        layout = row.layout
        after = time.monotonic() - started
        say(f"{after:.0f} s: {row.engine}, {row.workload}, {row.mode}, {layout.replicas} replicas")
    goodput = list(goodputs(measured))
    limits, controlled = saturation(measured), controller_rows(measured)
    print(saturation_table(limits), controller_table(controlled), sep="\n\n")
    print(rows_table(rows), sep="\n")
    data = {
        "settings": {"load": LOAD, "full": FULL, "first_token_s": FIRST_TOKEN_S},
        "measured": measured.about,
        "validation": validation,
        "saturation": limits,
        "controller": controlled,
        "rows": [as_json(row) for row in rows],
        "goodput": [{"layout": name, "load": load, **as_json(row)} for name, load, row in goodput],
    }
    print("written:", save(data, out))
    try:
        print("written:", *plots(rows, goodput, controlled, pictures))
    except ModuleNotFoundError:
        print("no plots: matplotlib is not installed (pip install 'gpt-task-serve[bench]')")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        prog="python -m benchmarks.capacity",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--measured", type=Path, default=MEASURED, help="the file between the two")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"), metavar="DIR")
    steps = parser.add_subparsers(dest="step", required=True)
    taken = steps.add_parser("measure", help="take the costs on this machine")
    parts = list(PARTS)
    taken.add_argument("--parts", nargs="+", choices=parts, default=parts, metavar="PART")
    simulated = steps.add_parser("simulate", help="put many replicas together from the costs")
    default = Path("benchmark-results/plots")
    simulated.add_argument("--plots", type=Path, default=default, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
