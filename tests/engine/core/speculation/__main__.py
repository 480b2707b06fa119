"""Thousands of random tasks with speculation: ``python -m tests.engine.core.speculation 2000``.

Every task runs four times: without speculation, with drafts of some kind alone and among others,
and with the engine's own. The tiny models run in four kinds of arithmetic; then SmolLM2, which has
real weights, runs a fortieth of the number. What differs is printed with its task; the exit status
is 1 then.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.smollm2 import convert
from tests.engine.conftest import save_tiny
from tests.engine.core.speculation.engines import (
    ARITHMETIC,
    OWN_SETTINGS,
    Guided,
    opened,
    save_variant,
    smollm2_vocabulary,
    tiny_vocabulary,
)
from tests.engine.core.speculation.properties import differences, make_cases
from tests.engine.core.speculation.random_tasks import Vocabulary

REAL_SHARE = 40
"""A task of real weights for so many of the tiny models, in each kind of arithmetic."""


def main() -> int:
    """Run them and print a line for each model; 1 if any task differs."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.engine.core.speculation", description=__doc__
    )
    parser.add_argument("count", nargs="?", type=int, default=2000, help="tasks of tiny models")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first one's seed")
    parser.add_argument("--only", choices=[*ARITHMETIC, "real"], action="append", default=[])
    arguments = parser.parse_args()
    only = arguments.only or [*ARITHMETIC, "real"]
    arithmetic = [name for name in ARITHMETIC if name in only]
    logging.getLogger("engine").setLevel(logging.CRITICAL)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as root:
        models = _tiny_models(Path(root))
        combinations = [(name, own) for name in arithmetic for own in models]
        share = -(-arguments.count // max(1, len(combinations)))
        for number, (name, own) in enumerate(combinations):
            bits = ARITHMETIC[name].get("quantize_bits")
            vocabulary = tiny_vocabulary(models[own], quantize_bits=bits)
            begin = arguments.first + number * share
            total += _run(
                f"tiny, {name}, own settings: {own}",
                models[own],
                vocabulary,
                range(begin, begin + share),
                ARITHMETIC[name],
            )
        if "real" in only:
            directory = Path(root) / "smollm2"
            convert(directory)
            share = -(-arguments.count // (REAL_SHARE * len(ARITHMETIC)))
            for number, (name, options) in enumerate(ARITHMETIC.items()):
                vocabulary = smollm2_vocabulary(directory, options.get("quantize_bits"))
                begin = arguments.first + number * share
                limits = {"context_length": 1024, "max_sequences": 16}
                total += _run(
                    f"SmolLM2, {name}",
                    directory,
                    vocabulary,
                    range(begin, begin + share),
                    options | limits,
                )
    print(f"{total['tasks']} tasks, {total['errors']} of them errors, {total['tokens']} tokens")
    print(f"{total['differences']} differences")
    return int(total["differences"] > 0)


def _tiny_models(root: Path) -> dict[str, Path]:
    plain = root / "tiny"
    plain.mkdir()
    save_tiny("internvl", plain)
    models = {own: root / own for own in OWN_SETTINGS}
    for own, directory in models.items():
        save_variant(plain, directory, OWN_SETTINGS[own])
    return models


def _run(
    title: str,
    directory: Path,
    vocabulary: Vocabulary,
    seeds: Sequence[int],
    options: dict[str, Any],
) -> Counter[str]:
    """Run the tasks of some seeds on two engines of one model."""
    with opened(directory, **options, speculation="off") as off:
        cases = asyncio.run(make_cases(off, vocabulary, seeds))
    with opened(directory, **options, speculation="on") as on:
        found = asyncio.run(differences(Guided(on, vocabulary), cases))
    counts = Counter(
        tasks=len(cases),
        errors=sum("error" in case.want for case in cases),
        tokens=sum(len(answer) for case in cases for answer in case.answers),
        differences=len(found),
    )
    print(f"{title}: " + ", ".join(f"{n} {what}" for what, n in counts.items()), flush=True)
    for one in found:
        print(f"  {one}", flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
