"""Ten times more than a server can do, for a minute: ``python -m benchmarks.overload``.

Serves the demo model by a real ``serve run``. First its capacity is measured: clients that send one
task after another. Then tasks are sent at ten times that rate whatever becomes of them, as
strangers would send them. In the end single tasks tell when the server is its old self. Prints how
many tasks were answered a second, how soon the others were refused, and how long recovery took;
writes ``overload.json`` and, with matplotlib, ``overload.png``.

The clients run on the same machine and take time from the server. Exits with 1 if goodput was more
than 10 % below the capacity, a refusal in a hundred took more than 100 ms, recovery took more than
5 s, or anything was answered but an answer (the right one) or 503 with Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.client import make_tasks
from benchmarks.report import aligned, pyplot, say
from benchmarks.server import DEMO, TUNED, serving

GOODPUT, REFUSAL_S, RECOVERY_S = 0.9, 0.1, 5.0
"""What is asked of a server: see above."""

_PROBE_EVERY_S = 0.25
_PROBE_FACTOR = 2.0  # a server is its old self when a task takes at most so many times as before
_PROBES = 80


@dataclass(frozen=True)
class Asked:
    """One task. ``status`` is 0 if the connection failed; ``wrong`` is an answer that is none."""

    at: float
    seconds: float
    status: int
    wrong: str | None = None


class Sender:
    """Sends tasks and compares answers to the same task.

    By aiohttp: for each request httpx looks at each of its connections, which are many here.
    """

    def __init__(self, http: aiohttp.ClientSession, tasks: list[dict[str, Any]]) -> None:
        self._http = http
        self._bodies = [json.dumps(task) for task in tasks]
        self._answers: dict[int, Any] = {}

    async def ask(self, number: int, start: float) -> Asked:
        """Send one task and wait for what comes of it."""
        number %= len(self._bodies)
        began = time.monotonic()
        try:
            async with self._http.post("/v1/tasks", data=self._bodies[number]) as response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            return Asked(began - start, time.monotonic() - began, 0, repr(error))
        seconds = time.monotonic() - began
        wrong = self._wrong(number, response, body)
        return Asked(began - start, seconds, response.status, wrong)

    def _wrong(self, number: int, response: aiohttp.ClientResponse, body: bytes) -> str | None:
        if response.status == 503:
            return None if "retry-after" in response.headers else "a 503 without Retry-After"
        if response.status != 200:
            return body.decode()
        choices = json.loads(body)["choices"]
        if self._answers.setdefault(number, choices) != choices:
            return "another answer than before"
        return None


async def closed_loop(sender: Sender, clients: int, seconds: float) -> list[Asked]:
    """``clients`` that send one task after another."""
    start = time.monotonic()
    numbers = iter(range(10**9))
    asked: list[Asked] = []

    async def client() -> None:
        while time.monotonic() < start + seconds:
            asked.append(await sender.ask(next(numbers), start))

    await asyncio.gather(*(client() for _ in range(clients)))
    return asked


async def open_loop(sender: Sender, rate: float, seconds: float) -> list[asyncio.Task[Asked]]:
    """``rate`` tasks a second, whatever becomes of those before; some are still open in the end."""
    start = time.monotonic()
    requests = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.monotonic()))
        requests.append(asyncio.create_task(sender.ask(number, start)))
    return requests


async def recovery(sender: Sender, usual_s: float) -> float | None:
    """Seconds until a task takes about as long as usual again; None if that takes too long."""
    start = time.monotonic()
    probes: set[asyncio.Task[Asked]] = set()
    for number in range(_PROBES):
        probes.add(asyncio.create_task(sender.ask(number, start)))
        done, probes = await asyncio.wait(probes, timeout=_PROBE_EVERY_S)
        for probe in done:
            found = probe.result()
            if found.status == 200 and found.seconds <= _PROBE_FACTOR * usual_s:
                await asyncio.gather(*probes)
                return found.at + found.seconds
    await asyncio.gather(*probes)
    return None


@dataclass(frozen=True)
class Found:
    """Everything that was measured; rates in tasks a second, times in seconds."""

    usual_s: float
    capacity: float
    offered: float
    seconds: float
    flood: list[Asked]
    recovery_s: float | None

    @property
    def goodput(self) -> float:
        """Answers a second while more than that was asked."""
        ended = [one.at + one.seconds for one in self.flood if one.status == 200]
        return sum(end <= self.seconds for end in ended) / self.seconds

    @property
    def refusals(self) -> list[float]:
        """How long each took, the shortest first."""
        return sorted(one.seconds for one in self.flood if one.status == 503)

    @property
    def wrong(self) -> list[str]:
        """What was no answer and no refusal."""
        return [one.wrong for one in self.flood if one.wrong is not None]

    @property
    def good(self) -> bool:
        """Whether the server keeps what is asked of it."""
        return (
            not self.wrong
            and self.goodput >= GOODPUT * self.capacity
            and _quantile(self.refusals, 0.99) <= REFUSAL_S
            and self.recovery_s is not None
            and self.recovery_s <= RECOVERY_S
        )

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "capacity_per_s": self.capacity,
            "offered_per_s": self.offered,
            "goodput_per_s": self.goodput,
            "goodput_of_capacity": self.goodput / self.capacity,
            "refusal_s": {str(q): _quantile(self.refusals, q) for q in (0.5, 0.99, 1.0)},
            "recovery_s": self.recovery_s,
            "one_task_alone_s": self.usual_s,
            "statuses": Counter(one.status for one in self.flood),
            "wrong": self.wrong,
            "good": self.good,
            "asked": [asdict(one) for one in self.flood],
        }

    def table(self) -> str:
        """For people."""
        slow = [f"{_quantile(self.refusals, q) * 1e3:.0f}" for q in (0.5, 0.99, 1.0)]
        recovered = "not" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        lines = [
            ["capacity", f"{self.capacity:.1f} tasks/s"],
            ["asked for", f"{self.offered:.0f} tasks/s for {self.seconds:g} s"],
            ["answered", f"{self.goodput:.1f} tasks/s ({self.goodput / self.capacity:.0%})"],
            ["refused in, p50 / p99 / max", f"{' / '.join(slow)} ms"],
            ["recovered after", recovered],
            ["neither answer nor refusal", str(len(self.wrong))],
        ]
        return aligned(lines, names=1)

    def plot(self, file: Path) -> bool:
        """Answers and refusals of each second, and how long each refusal took."""
        if (plt := pyplot()) is None:
            return False
        figure, axes = plt.subplots(2, 1, figsize=(11, 7), sharex=True, layout="constrained")
        seconds = range(int(self.seconds) + 1)
        for status, name in ((200, "answers"), (503, "refusals")):
            ended = Counter(int(x.at + x.seconds) for x in self.flood if x.status == status)
            axes[0].step(seconds, [ended[second] for second in seconds], label=name)
        axes[0].axhline(self.capacity, color="grey", linestyle=":", label="capacity")
        axes[0].set(ylabel="a second", yscale="symlog", ylim=0)
        axes[0].legend()
        refused = [(x.at, x.seconds * 1e3) for x in self.flood if x.status == 503]
        if refused:
            axes[1].scatter(*zip(*refused, strict=True), s=3)
        axes[1].axhline(REFUSAL_S * 1e3, color="grey", linestyle=":")
        axes[1].set(xlabel="seconds", ylabel="time until a refusal, ms", ylim=0)
        figure.savefig(file, dpi=110)
        plt.close(figure)
        return True


def _quantile(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def measure(address: str, options: argparse.Namespace) -> Found:
    """Capacity, flood, recovery."""
    tasks = [task for task in make_tasks(40) if options.pictures or not _has_picture(task)]
    async with aiohttp.ClientSession(
        address,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=120),
    ) as http:
        sender = Sender(http, tasks)
        await closed_loop(sender, 1, 3.0)  # whatever is slow the first time
        alone = await closed_loop(sender, 1, 5.0)
        usual = max(one.seconds for one in alone)
        until = options.capacity_seconds
        busy = await closed_loop(sender, options.clients, until)
        ended = [one.at + one.seconds for one in busy if one.status == 200]
        filled = until / 4  # until then there were fewer answers than places
        capacity = sum(filled < end <= until for end in ended) / (until - filled)
        rate = options.times * capacity
        say(f"capacity {capacity:.1f} tasks/s; now {rate:.0f} tasks/s for {options.seconds:g} s")
        requests = await open_loop(sender, rate, options.seconds)
        recovered = await recovery(sender, usual)
        flood = await asyncio.gather(*requests)
    return Found(usual, capacity, rate, options.seconds, flood, recovered)


def _has_picture(task: dict[str, Any]) -> bool:
    return not isinstance(task["messages"][0]["content"], str)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.overload")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=10.0, help="the capacity")
    parser.add_argument("--capacity-seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=24, help="that measure the capacity")
    parser.add_argument("--sequences", type=int, default=16, help="max_sequences of the engine")
    parser.add_argument("--waiting", type=int, default=16, help="max_waiting of the engine")
    parser.add_argument("--tuned", action="store_true", help="Ray's HAProxy takes the requests")
    parser.add_argument("--pictures", action="store_true", help="a quarter of the tasks has one")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    engine = {"max_sequences": options.sequences, "max_waiting": options.waiting}
    args = {"models": [DEMO | {"engine": engine}]}
    environment = TUNED if options.tuned else {}
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(args, Path(folder), environment) as server,
    ):
        found = asyncio.run(measure(server.address, options))
    say(found.table())
    for line in found.wrong[:10]:
        say(f"  {line[:200]}")
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    data = {"settings": settings, **found.to_json()}
    (options.output / "overload.json").write_text(json.dumps(data, indent=1) + "\n")
    if not found.plot(options.output / "overload.png"):
        say("no picture: matplotlib is not installed (the extra `bench`)")
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(main())
