"""Tries what is claimed about GPUs: ``python -m cluster.gpu_day --out results``.

Every claim of docs/gpu.md that a machine can show, the most important first, each in a process of
its own with a limit, in ten minutes at most. It needs no network, no weights and no Ray. Prints
each result as it comes, and writes ``gpu-day.json`` and ``gpu-day.md`` after each, so that nothing
is lost if the machine is.

Exit status: 0 if nothing failed, 1 if something did, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from cluster.gpu_day import ledger
from cluster.gpu_day.claim import Bench, Result
from cluster.gpu_day.claims import CLAIMS
from cluster.gpu_day.day import tried

_BAD = {"not shown", "failed", "too slow"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the claims; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        _parser().error("there is no GPU that torch can use; --device cpu --small is a dry run")
    claims = [claim for claim in CLAIMS if not options.only or claim.name in options.only]
    about = ledger.machine(options.device)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
        bench = Bench(options.device, Path(folder), options.small)
        for result in tried(claims, bench, options.seconds):
            results.append(result)
            ledger.write(options.out, about, results)
            told = result.reason or ", ".join(f"{k} {v}" for k, v in result.found.items())
            print(
                f"{result.status:9}  {result.name:12} {result.seconds:6.1f} s  {told}", flush=True
            )
    print(f"written to {options.out}")
    return int(any(result.status in _BAD for result in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cluster.gpu_day",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [claim.name for claim in CLAIMS]
    parser.add_argument("--out", type=Path, required=True, help="the folder of the results")
    parser.add_argument("--seconds", type=float, default=600, help="at most so many in all: 600")
    parser.add_argument("--only", nargs="+", choices=names, metavar="CLAIM", help=f"of {names}")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, for a dry run")
    return parser


if __name__ == "__main__":
    sys.exit(main())
