"""What the command lines of all benchmarks have in common."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def parser(module: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m module`` that has ``--out``, the folder for results."""
    made = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--out", "--output", type=Path, default=Path("benchmark-results"), metavar="DIR"
    )
    return made


def numbers(kind: type) -> Callable[[str], list[Any]]:
    """Reads positive numbers that stand between commas."""

    def read(text: str) -> list[Any]:
        values = [kind(part) for part in text.split(",") if part]
        if any(value <= 0 for value in values):
            raise argparse.ArgumentTypeError("must be positive")
        return values

    return read


def setting(text: str) -> tuple[str, Any]:
    """Reads NAME=VALUE, an option of an engine; the value is JSON, or else text."""
    name, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def end_with_servers() -> None:
    """Let SIGTERM and SIGINT raise, so that the servers of this process end with it.

    A process that runs in the background ignores SIGINT otherwise.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGINT, signal.default_int_handler)
