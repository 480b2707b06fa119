"""Which architectures of transformers run, and in which way: ``python -m benchmarks.coverage``.

Of each architecture a tiny model with random weights is made through transformers' own classes, and
loaded by the engine in float32. Its tokens are compared with those of `generate`, greedy and
sampled, alone and among others. Each architecture has a process of its own. Writes
``coverage.json``, and with ``--write`` the table of docs/models.md.

Exits with 1 if an answer differs or a process crashes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count
from pathlib import Path

from benchmarks.coverage import page
from benchmarks.coverage.parts import PARTS
from benchmarks.coverage.rows import BAD, Row
from benchmarks.harness import command, report
from benchmarks.harness.report import say


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    options = _parse(arguments)
    wanted = [
        (part, name)
        for part in options.parts
        for name in PARTS[part].architectures()
        if not options.only or name in options.only
    ]
    if missing := {*options.only} - {name for _, name in wanted}:
        sys.exit(f"no such architecture: {', '.join(sorted(missing))}")
    numbers = count(1)

    def look(job: tuple[str, str]) -> Row:
        found = _row(*job, options.seconds)
        say(f"{next(numbers)} of {len(wanted)}: {' '.join(asdict(found).values())}")
        return found

    with ThreadPoolExecutor(options.jobs) as pool:
        rows = list(pool.map(look, wanted))
    by_part: dict[str, list[Row]] = {part: [] for part in options.parts}
    for (part, _), row in zip(wanted, rows, strict=True):
        by_part[part].append(row)
    print(page.counts(by_part))
    data = {part: [asdict(row) for row in of_part] for part, of_part in by_part.items()}
    about = report.about("coverage", options, "torch", "transformers")
    report.write(options.out, "coverage", {"about": about, "rows": data})
    if options.write:
        for part, of_part in by_part.items():
            page.replace(options.write, part, page.table(part, of_part))
    if bad := [row for row in rows if row.outcome in BAD]:
        sys.exit("\n".join(f"{row.architecture}: {row.outcome}: {row.reason}" for row in bad))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.coverage", __doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    add("--only", type=lambda text: text.split(","), default=[], metavar="A,B")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    add("--seconds", type=float, default=300.0, help="after which one has hung")
    add("--write", type=Path, metavar="FILE", help="the page whose tables are replaced")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error("--write needs all architectures of its parts, so not --only")
    return options


def _row(part: str, architecture: str, seconds: float) -> Row:
    """Compare in a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.coverage.worker", part, architecture]
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            arguments,
            env=os.environ | offline,
            timeout=seconds,
            capture_output=True,
            text=True,
            check=True,
        )
        return Row(**json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return Row(architecture, "crashed", f"it was not done after {seconds:g} s")
    except subprocess.CalledProcessError as error:
        last = error.stderr.strip().splitlines()[-1:]
        return Row(architecture, "crashed", f"exit code {error.returncode}: {''.join(last)}")


if __name__ == "__main__":
    main()
