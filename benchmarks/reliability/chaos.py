"""Kills replicas under load and compares every answer: ``python -m benchmarks.reliability.chaos``.

Serves the demo model with several replicas by a real ``serve run``. Tasks (text and pictures,
greedy, sampled and several answers) are streamed by a number of clients at once: first in a quiet
run, which gives the bytes that each has to have, then while a process is killed, or stopped
(SIGSTOP: it hangs), every few seconds. Prints how many answers were equal and how long clients had
to wait for their next bytes; writes ``chaos.json`` and, with matplotlib, ``chaos.png``.

Exits with 1 if an answer is missing or differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.engine.report import aligned, pyplot, say
from benchmarks.harness.server import DEMO, DEPLOYMENT, Server, serving
from benchmarks.reliability.tasks import Answer, make_tasks, stream

FAULTS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "pictures": signal.SIGKILL}
_SEED = 20260101
_ATTEMPTS = 50  # a task may be hit often; what is measured is whether it comes through


@dataclass(frozen=True)
class Run:
    """All tasks once. ``faults`` says when which was done."""

    answers: list[Answer]
    seconds: float
    faults: list[tuple[float, str]] = field(default_factory=list)


async def run_all(
    server: Server, tasks: Sequence[dict[str, Any]], clients: int, faults: Faults | None
) -> Run:
    """Stream all tasks, ``clients`` at a time, while ``faults`` happen."""
    start = time.monotonic()
    answers: list[Answer | None] = [None] * len(tasks)
    numbers = iter(range(len(tasks)))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.address, timeout=600, limits=limits) as http:

        async def client() -> None:
            for number in numbers:
                answers[number] = await stream(http, tasks[number], start)

        chaos = None if faults is None else asyncio.create_task(faults.go_on(server, start))
        shown = asyncio.create_task(_show(answers))
        await asyncio.gather(*(client() for _ in range(clients)))
        shown.cancel()
        if chaos is not None:
            chaos.cancel()
    seconds = time.monotonic() - start
    done = [answer for answer in answers if answer is not None]
    return Run(done, seconds, [] if faults is None else faults.done)


async def _show(answers: Sequence[Answer | None]) -> None:
    while True:
        await asyncio.sleep(10)
        say(f"  {sum(answer is not None for answer in answers)} of {len(answers)} answered")


class Faults:
    """Does one of the faults every few seconds, to a process chosen by a seeded generator."""

    def __init__(self, kinds: Sequence[str], every_s: float) -> None:
        self.done: list[tuple[float, str]] = []
        self._kinds = kinds
        self._every_s = every_s
        self._random = random.Random(_SEED)
        self._stopped: list[psutil.Process] = []

    async def go_on(self, server: Server, start: float) -> None:
        """Until it is cancelled."""
        number = 0
        while True:
            await asyncio.sleep(self._every_s)
            kind = self._kinds[number % len(self._kinds)]
            number += 1
            deployment = "ImagePreprocessor" if kind == "pictures" else DEPLOYMENT
            victims = await asyncio.to_thread(server.replicas, deployment)
            victims = [victim for victim in victims if victim not in self._stopped]
            if not victims:
                continue  # the replacement is still on its way
            victim = self._random.choice(victims)
            victim.send_signal(FAULTS[kind])
            if kind == "hang":
                self._stopped.append(victim)
            self.done.append((time.monotonic() - start, kind))


def report(quiet: Run, disturbed: Run) -> dict[str, Any]:
    """What the two runs show, JSON-able."""
    pairs = list(zip(quiet.answers, disturbed.answers, strict=True))
    stalls = sorted(answer.longest_stall for answer in disturbed.answers)
    return {
        "tasks": len(pairs),
        "answered": sum(after.text is not None for _, after in pairs),
        "equal": sum(
            before.text is not None and before.text == after.text for before, after in pairs
        ),
        "quiet_errors": [before.error for before, _ in pairs if before.error],
        "errors": [after.error for _, after in pairs if after.error],
        "faults": Counter(kind for _, kind in disturbed.faults),
        "quiet_seconds": quiet.seconds,
        "disturbed_seconds": disturbed.seconds,
        "quiet_longest_stall": max(answer.longest_stall for answer in quiet.answers),
        "longest_stall": stalls[-1],
        "stall_p50": stalls[len(stalls) // 2],
        "stall_p99": stalls[int(len(stalls) * 0.99)],
    }


def table(found: dict[str, Any]) -> str:
    """The report for people."""
    faults = ", ".join(f"{count} x {kind}" for kind, count in found["faults"].items())
    lines = [
        ["tasks", str(found["tasks"])],
        ["faults", faults or "none"],
        ["answered", str(found["answered"])],
        ["equal to the quiet run, byte for byte", str(found["equal"])],
        ["longest stall (quiet run)", f"{found['quiet_longest_stall']:.2f} s"],
        ["longest stall", f"{found['longest_stall']:.2f} s"],
        ["stall of a task, p50 / p99", f"{found['stall_p50']:.2f} / {found['stall_p99']:.2f} s"],
        [
            "seconds, quiet / disturbed",
            f"{found['quiet_seconds']:.0f} / {found['disturbed_seconds']:.0f}",
        ],
    ]
    return aligned(lines, names=1)


def plot(quiet: Run, disturbed: Run, file: Path) -> bool:
    """Draw every task's longest wait over time; False where matplotlib is not installed."""
    if (plt := pyplot()) is None:
        return False
    figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
    for run, name, marker in ((quiet, "quiet run", "."), (disturbed, "with faults", "x")):
        points = [(answer.stalled_at, answer.longest_stall) for answer in run.answers]
        axes.scatter(*zip(*points, strict=True), label=name, marker=marker, alpha=0.6)
    colours = dict(zip(FAULTS, ("tab:red", "tab:purple", "tab:brown"), strict=True))
    for when, kind in disturbed.faults:
        axes.axvline(when, color=colours[kind], alpha=0.35, linewidth=1)
    for kind in dict.fromkeys(kind for _, kind in disturbed.faults):
        axes.plot([], [], color=colours[kind], label=f"{kind}: one process")
    axes.set(xlabel="seconds", ylabel="longest wait of a task for its next bytes, s", ylim=0)
    figure.legend(loc="outside upper center", ncols=5)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.reliability.chaos"
    )
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    parser.add_argument(
        "--faults",
        nargs="+",
        choices=FAULTS,
        default=["kill"],
        help="done in turn: a model's replica killed, or made to hang; the preprocessor killed",
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _arguments(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    args = {
        "models": [
            DEMO | {"min_replicas": options.replicas, "max_replicas": options.replicas},
        ],
        "limits": {"max_replays": _ATTEMPTS},
    }
    tasks = make_tasks(options.tasks)
    with tempfile.TemporaryDirectory() as folder, serving(args, Path(folder)) as server:
        say(f"{len(tasks)} tasks, {options.clients} at once, without faults")
        quiet = asyncio.run(run_all(server, tasks, options.clients, None))
        say(f"the same with a fault every {options.every:g} s: {', '.join(options.faults)}")
        faults = Faults(options.faults, options.every)
        disturbed = asyncio.run(run_all(server, tasks, options.clients, faults))
    found = report(quiet, disturbed)
    say(table(found))
    options.output.mkdir(parents=True, exist_ok=True)
    data = {
        **found,
        "settings": {
            "clients": options.clients,
            "replicas": options.replicas,
            "every_s": options.every,
            "max_replays": _ATTEMPTS,
        },
        "fault_times": disturbed.faults,
        "runs": [asdict(quiet), asdict(disturbed)],
    }
    (options.output / "chaos.json").write_text(json.dumps(data, indent=1) + "\n")
    if not plot(quiet, disturbed, options.output / "chaos.png"):
        say("no picture: matplotlib is not installed (the extra `bench`)")
    return 0 if found["equal"] == found["tasks"] else 1


if __name__ == "__main__":
    sys.exit(main())
