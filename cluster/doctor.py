"""Can this machine run the engine, and does it keep its promise? ``python -m cluster.doctor``.

Checks driver, torch's build for the GPUs, bitsandbytes' INT4 and INT8, attention, free memory,
equal bytes of the demo model alone and under load, and what Ray finds. Each line passes, or says
what to do. Without a GPU the checks of the CPU run, and the others say "no GPU".

Exit status: 0 if nothing failed, 1 if something did, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict

from cluster.hardware.checks import Line, judge
from cluster.hardware.machine import collect


def report(lines: Sequence[Line]) -> str:
    """The checks as text, with what to do below each failed one."""
    width = max(len(line.name) for line in lines)
    text = []
    for line in lines:
        text.append(f"{line.status:6}  {line.name:{width}}  {line.found}")
        if line.way_out:
            text.append(f"{'':6}  {'':{width}}  -> {line.way_out}")
    failed = sum(line.status == "failed" for line in lines)
    text.append(f"{failed} of {len(lines)} checks failed" if failed else "nothing failed")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None, prog: str = "python -m cluster.doctor") -> int:
    """Check this machine; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gpu", action="store_true", help="fail where there is no GPU")
    parser.add_argument("--json", action="store_true", help="print the lines as a JSON list")
    parser.add_argument(
        "--address", metavar="ADDRESS", help="look at a running Ray cluster too; auto: this one"
    )
    options = parser.parse_args(arguments)
    lines = judge(collect(options.address), gpu_required=options.gpu)
    if options.json:
        print(json.dumps([asdict(line) for line in lines], indent=1))
    else:
        print(report(lines))
    return 1 if any(line.status == "failed" for line in lines) else 0


if __name__ == "__main__":
    # The log lines of the demo model's engine are not findings.
    logging.getLogger("engine").setLevel(logging.ERROR)
    sys.exit(main())
