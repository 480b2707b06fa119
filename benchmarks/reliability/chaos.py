"""Kills replicas under load and compares every answer: ``python -m benchmarks.reliability.chaos``.

Serves the demo model with several replicas by a real ``serve run``. Tasks (text and images, greedy,
sampled and several answers) are streamed by a number of clients at once: first in a quiet run,
which gives the bytes that each has to have, then while a process is killed, or stopped (SIGSTOP: it
hangs), every few seconds. Prints how many answers were equal and how long clients had to wait for
their next bytes; writes ``chaos.json`` and, with matplotlib, ``chaos.png``.

Exits with 1 if an answer is missing or differs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil

from benchmarks.harness import command
from benchmarks.harness.client import Answer, Client, Endpoint
from benchmarks.harness.load import at_once
from benchmarks.harness.report import about, aligned, say, write
from benchmarks.harness.server import DEMO, DEMO_DEPLOYMENT, Server, serving
from benchmarks.harness.tasks import demo_tasks

FAULTS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "images": signal.SIGKILL}
_SEED = 20260101
_ATTEMPTS = 50  # a task may be hit often; what is measured is whether it comes through


@dataclass(frozen=True)
class Run:
    """All tasks once. ``faults`` says when which was done."""

    start: float
    answers: list[Answer]
    seconds: float
    faults: list[tuple[float, str]]

    def stalls(self) -> list[tuple[float, float]]:
        """When each task's longest wait for bytes began, after the start, and how long it was."""
        waits = [answer.longest_stall() for answer in self.answers]
        return [(began - self.start, seconds) for seconds, began in waits]

    def to_json(self) -> list[dict[str, Any]]:
        """What came of each task."""
        return [
            {
                "began": answer.sent - self.start,
                "seconds": answer.seconds,
                "stalled_at": stalled_at,
                "longest_stall": longest_stall,
                "texts": answer.texts,
                "error": answer.error,
            }
            for answer, (stalled_at, longest_stall) in zip(self.answers, self.stalls(), strict=True)
        ]


async def run_all(
    server: Server, tasks: Sequence[dict[str, Any]], clients: int, faults: Faults | None
) -> Run:
    """Stream all tasks, ``clients`` at a time, while ``faults`` happen."""
    start = time.perf_counter()
    async with Client(Endpoint(server.address, "demo")) as client:
        beside = faults and asyncio.create_task(faults.go_on(server, start))
        stream = partial(client.ask, stream=True)
        answers = await at_once(tasks, clients, stream, f"of {len(tasks)} answered")
        if beside:
            beside.cancel()
    seconds = time.perf_counter() - start
    return Run(start, answers, seconds, faults.done if faults else [])


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
            deployment = "ImagePreprocessor" if kind == "images" else DEMO_DEPLOYMENT
            victims = await asyncio.to_thread(server.replicas, deployment)
            victims = [victim for victim in victims if victim not in self._stopped]
            if not victims:
                continue  # the replacement is still on its way
            victim = self._random.choice(victims)
            victim.send_signal(FAULTS[kind])
            if kind == "hang":
                self._stopped.append(victim)
            self.done.append((time.perf_counter() - start, kind))


def report(quiet: Run, disturbed: Run) -> dict[str, Any]:
    """What the two runs show, JSON-able."""
    pairs = list(zip(quiet.answers, disturbed.answers, strict=True))
    stalls = sorted(seconds for _, seconds in disturbed.stalls())
    return {
        "tasks": len(pairs),
        "answered": sum(after.closed for _, after in pairs),
        "equal": sum(
            before.closed and after.closed and before.texts == after.texts
            for before, after in pairs
        ),
        "quiet_errors": [before.error for before, _ in pairs if before.error],
        "errors": [after.error for _, after in pairs if after.error],
        "faults": Counter(kind for _, kind in disturbed.faults),
        "quiet_seconds": quiet.seconds,
        "disturbed_seconds": disturbed.seconds,
        "quiet_longest_stall": max(seconds for _, seconds in quiet.stalls()),
        "longest_stall": stalls[-1],
        "stall_p50": stalls[len(stalls) // 2],
        "stall_p99": stalls[int(len(stalls) * 0.99)],
    }


def text(found: dict[str, Any]) -> str:
    """The report for people."""
    faults = ", ".join(f"{count} x {kind}" for kind, count in found["faults"].items())
    stalls = f"{found['stall_p50']:.2f} / {found['stall_p99']:.2f} s"
    seconds = f"{found['quiet_seconds']:.0f} / {found['disturbed_seconds']:.0f}"
    lines = [
        ["tasks", str(found["tasks"])],
        ["faults", faults or "none"],
        ["answered", str(found["answered"])],
        ["equal to the quiet run, byte for byte", str(found["equal"])],
        ["longest stall (quiet run)", f"{found['quiet_longest_stall']:.2f} s"],
        ["longest stall", f"{found['longest_stall']:.2f} s"],
        ["stall of a task, p50 / p99", stalls],
        ["seconds, quiet / disturbed", seconds],
    ]
    return aligned(lines, names=1)


def _panel(quiet: Run, disturbed: Run, axes: Any) -> None:
    """Every task's longest wait over time, and the faults."""
    for run, name, marker in ((quiet, "quiet run", "."), (disturbed, "with faults", "x")):
        axes.scatter(*zip(*run.stalls(), strict=True), label=name, marker=marker, alpha=0.6)
    colours = dict(zip(FAULTS, ("tab:red", "tab:purple", "tab:brown"), strict=True))
    for when, kind in disturbed.faults:
        label = f"{kind}: one process"
        axes.axvline(when, color=colours[kind], alpha=0.35, linewidth=1, label=label)
    axes.set(xlabel="seconds", ylabel="longest wait of a task for its next bytes, s", ylim=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
    replicas = {"min_replicas": options.replicas, "max_replicas": options.replicas}
    args = {"models": [DEMO | replicas], "limits": {"max_replays": _ATTEMPTS}}
    tasks = demo_tasks(options.tasks)
    with serving(args) as server:
        say(f"{len(tasks)} tasks, {options.clients} at once, without faults")
        quiet = asyncio.run(run_all(server, tasks, options.clients, None))
        say(f"the same with a fault every {options.every:g} s: {', '.join(options.faults)}")
        faults = Faults(options.faults, options.every)
        disturbed = asyncio.run(run_all(server, tasks, options.clients, faults))
    found = report(quiet, disturbed)
    print(text(found))
    data = about("chaos", options) | found | {"max_replays": _ATTEMPTS}
    data |= {"fault_times": disturbed.faults, "runs": [quiet.to_json(), disturbed.to_json()]}
    write(options.out, "chaos", data, [partial(_panel, quiet, disturbed)])
    return 0 if found["equal"] == found["tasks"] else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.reliability.chaos", __doc__)
    add = parser.add_argument
    add("--tasks", type=int, default=1000)
    add("--clients", type=int, default=16)
    add("--replicas", type=int, default=2)
    add("--every", type=float, default=5.0, metavar="S", help="seconds between two faults")
    done = "in turn: a model's replica killed, or made to hang; the image preprocessor killed"
    add("--faults", nargs="+", choices=FAULTS, default=["kill"], help=done)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
