"""Kills replicas under load and compares every answer: ``python -m benchmarks.reliability.chaos``.

Serves the demo model with several replicas by a real ``serve run``. Tasks (text and images, greedy,
sampled and several answers; every tenth has 1,000 tokens) are streamed by a number of clients at
once: first in a quiet run, which gives the bytes that each has to have, then while a process is
killed, or stopped (SIGSTOP: it hangs), every few seconds. Prints how many answers were equal and
how long clients had to wait for their next bytes: in all, and in one go while a replica of the
model was live. Writes ``chaos.json`` and, with matplotlib, ``chaos.png``.

Exits with 1 if an answer is missing or differs.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

import psutil

from benchmarks.harness import command
from benchmarks.harness.client import Answer, Client, Endpoint
from benchmarks.harness.load import at_once
from benchmarks.harness.report import about, aligned, say, write
from benchmarks.harness.server import DEMO, DEMO_DEPLOYMENT, Server, serving
from benchmarks.harness.tasks import LONG, demo_task, demo_tasks
from benchmarks.reliability.waits import Span, Wait, waits, without_replica

FAULTS = {"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "images": signal.SIGKILL}
_SEED = 20260101
_ATTEMPTS = 50  # a task may be hit often; what is measured is whether it comes through
_LONG_EVERY, _LONG_TOKENS = 10, 1000
# The token that ends an answer of the demo model is never drawn, and the others nearly alike.
_NEVER_ENDS = {"temperature": 5.0, "logit_bias": {"1019": -100.0}}
_KINDS = 4  # of tasks; the first ones are of different kinds


@dataclass(frozen=True)
class Fault:
    """What was done to which process, seconds after the start."""

    when: float
    kind: str
    pid: int


@dataclass(frozen=True)
class Run:
    """All tasks once.

    Attributes:
        start: when, as `time.perf_counter` has it; other times are seconds after it.
        answers: in the order of the tasks.
        seconds: how long it took.
        faults: what was done meanwhile.
        gaps: when no replica of the model was live.
    """

    start: float
    answers: list[Answer]
    seconds: float
    faults: list[Fault]
    gaps: list[Span]

    @cached_property
    def waits(self) -> list[list[Wait]]:
        """Of each task, the waits for its next bytes."""
        found = []
        for answer in self.answers:
            times = [answer.sent, *(when for when, _ in answer.lines), answer.sent + answer.seconds]
            found.append(waits([when - self.start for when in times], self.gaps))
        return found

    def longest(self) -> list[Wait]:
        """The longest wait of each task."""
        return [max(own, key=lambda wait: wait.seconds) for own in self.waits]

    def longest_rests(self) -> list[Wait]:
        """Of each task, the wait with the longest stretch in which a replica was live."""
        return [max(own, key=lambda wait: wait.rest) for own in self.waits]

    def to_json(self) -> list[dict[str, Any]]:
        """What came of each task."""
        longest = zip(self.answers, self.longest(), self.longest_rests(), strict=True)
        return [
            {
                "began": answer.sent - self.start,
                "seconds": answer.seconds,
                "longest_wait": wait._asdict(),
                "longest_wait_with_replica": rest._asdict(),
                "tokens": answer.tokens,
                "texts": answer.texts,
                "error": answer.error,
            }
            for answer, wait, rest in longest
        ]


def chaos_tasks(count: int) -> list[dict[str, Any]]:
    """Those of `demo_tasks`; every tenth is an answer of 1,000 tokens instead."""
    config = LONG | _NEVER_ENDS | {"max_new_tokens": _LONG_TOKENS}
    return [
        demo_task(number, "Write.", config) if number % _LONG_EVERY == _LONG_EVERY - 1 else task
        for number, task in enumerate(demo_tasks(count))
    ]


async def run_all(
    server: Server, tasks: Sequence[dict[str, Any]], clients: int, faults: Faults | None
) -> Run:
    """Stream all tasks, ``clients`` at a time, while ``faults`` happen."""
    start, clock = time.perf_counter(), time.time()
    async with Client(Endpoint(server.address, "demo")) as client:
        beside = faults and asyncio.create_task(faults.go_on(server, start))
        stream = partial(client.ask, stream=True)
        answers = await at_once(tasks, clients, stream, f"of {len(tasks)} answered")
        if beside:
            beside.cancel()
    seconds = time.perf_counter() - start
    done = faults.done if faults else []
    lost = {fault.pid: fault.when for fault in done if fault.kind != "images"}
    lives = [
        (born - clock, lost.get(pid, math.inf)) for born, pid in server.starts(DEMO_DEPLOYMENT)
    ]
    return Run(start, answers, seconds, done, without_replica(lives, 0.0, seconds))


class Faults:
    """Does one of the faults every few seconds, to a process chosen by a seeded generator."""

    def __init__(self, kinds: Sequence[str], every_s: float) -> None:
        self.done: list[Fault] = []
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
            self.done.append(Fault(time.perf_counter() - start, kind, victim.pid))


def report(quiet: Run, disturbed: Run) -> dict[str, Any]:
    """What the two runs show, JSON-able."""
    pairs = list(zip(quiet.answers, disturbed.answers, strict=True))
    longest = sorted(wait.seconds for wait in disturbed.longest())
    rests = sorted(wait.rest for wait in disturbed.longest_rests())
    return {
        "tasks": len(pairs),
        "answered": sum(after.closed for _, after in pairs),
        "equal": sum(
            before.closed and after.closed and before.texts == after.texts
            for before, after in pairs
        ),
        "quiet_errors": [before.error for before, _ in pairs if before.error],
        "errors": [after.error for _, after in pairs if after.error],
        "faults": Counter(fault.kind for fault in disturbed.faults),
        "quiet_seconds": quiet.seconds,
        "disturbed_seconds": disturbed.seconds,
        "seconds_without_replica": sum(last - first for first, last in disturbed.gaps),
        "quiet_longest_wait": max(wait.seconds for wait in quiet.longest()),
        "longest_wait": max(disturbed.longest(), key=lambda wait: wait.seconds)._asdict(),
        "wait_p50_p99": _quantiles(longest),
        "longest_wait_with_replica": rests[-1],
        "wait_with_replica_p50_p99": _quantiles(rests),
    }


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    return values[len(values) // 2], values[int(len(values) * 0.99)]


def text(found: dict[str, Any]) -> str:
    """The report for people."""
    faults = ", ".join(f"{count} x {kind}" for kind, count in found["faults"].items())
    longest = found["longest_wait"]
    without = f"{longest['without_replica']:.2f} s of it without a live replica"
    seconds = f"{found['quiet_seconds']:.0f} / {found['disturbed_seconds']:.0f}"
    lines = [
        ["tasks", str(found["tasks"])],
        ["faults", faults or "none"],
        ["answered", str(found["answered"])],
        ["equal to the quiet run, byte for byte", str(found["equal"])],
        ["seconds, quiet / disturbed", seconds],
        ["seconds without a live replica", f"{found['seconds_without_replica']:.0f}"],
        ["longest wait, quiet run", f"{found['quiet_longest_wait']:.2f} s"],
        ["longest wait", f"{longest['seconds']:.2f} s, {without}"],
        [
            "longest wait in one go while a replica was live",
            f"{found['longest_wait_with_replica']:.2f} s",
        ],
        ["longest wait of a task, p50 / p99", _pair(found["wait_p50_p99"])],
        ["in one go with a live replica, p50 / p99", _pair(found["wait_with_replica_p50_p99"])],
    ]
    return aligned(lines, names=1)


def _pair(values: Sequence[float]) -> str:
    return " / ".join(f"{value:.2f}" for value in values) + " s"


def _panel(quiet: Run, disturbed: Run, axes: Any) -> None:
    """Every task's longest wait over time, and the faults."""
    shown = (
        (quiet.longest(), "quiet run", "."),
        (disturbed.longest(), "with faults", "x"),
        (disturbed.longest_rests(), "with faults, in one go while a replica was live", "+"),
    )
    for found, name, marker in shown:
        values = [wait.rest if marker == "+" else wait.seconds for wait in found]
        begun = [wait.began for wait in found]
        axes.scatter(begun, values, label=name, marker=marker, alpha=0.6)
    colours = dict(zip(FAULTS, ("tab:red", "tab:purple", "tab:brown"), strict=True))
    for fault in disturbed.faults:
        label = f"{fault.kind}: one process"
        axes.axvline(fault.when, color=colours[fault.kind], alpha=0.35, linewidth=1, label=label)
    axes.set(xlabel="seconds", ylabel="longest wait of a task for its next bytes, s", ylim=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
    replicas = {"min_replicas": options.replicas, "max_replicas": options.replicas}
    args = {"models": [DEMO | replicas], "limits": {"max_replays": _ATTEMPTS}}
    tasks = chaos_tasks(options.tasks)
    with serving(args) as server:
        asyncio.run(run_all(server, tasks[:_KINDS], _KINDS, None))  # imports, first shapes
        say(f"{len(tasks)} tasks, {options.clients} at once, without faults")
        quiet = asyncio.run(run_all(server, tasks, options.clients, None))
        say(f"the same with a fault every {options.every:g} s: {', '.join(options.faults)}")
        faults = Faults(options.faults, options.every)
        disturbed = asyncio.run(run_all(server, tasks, options.clients, faults))
    found = report(quiet, disturbed)
    print(text(found))
    data = about("chaos", options) | found | {"max_replays": _ATTEMPTS}
    data |= {"fault_times": [asdict(fault) for fault in disturbed.faults], "gaps": disturbed.gaps}
    data |= {"runs": [quiet.to_json(), disturbed.to_json()]}
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
