"""Minutes of mixed load with clients that disconnect: ``python -m benchmarks.reliability.soak``.

Serves the demo model by a real ``serve run``. Clients send texts and images, streamed or not,
disconnect in the middle of streams and before their answer, and send wrong requests. Every answer
is compared with the first one to the same task. Every few seconds all processes of the server are
looked at. In the end, when everything is quiet, no page of a KV cache may be missing, and it is
measured how soon the rows of a client that disconnects are free.

Prints tables, writes ``soak.json`` and, with matplotlib, ``soak.png``. Exits with 1 if an answer
differs, a request has an unexpected end, a page is lost, or a process of the server grows.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import aiohttp

from benchmarks.harness import command
from benchmarks.harness.client import Answer, Client, Endpoint
from benchmarks.harness.processes import Growth, Sample, by_process, growth, sampled
from benchmarks.harness.report import Panel, about, aligned, say, table, write
from benchmarks.harness.server import DEMO, Server, serving
from benchmarks.harness.tasks import demo_tasks
from benchmarks.reliability.disconnects import disconnect, idle

WARM_UP = 1 / 3
"""The share of the time in which caches fill, allocators find their size and code is loaded."""
MiB = 2**20
GROWTH, GROWTH_BYTES, FILES_GROWTH = 0.05, 8 * MiB, 8
"""A process that has grown by more after the warm-up is not flat: by this share of its memory and
so many bytes, or by so many descriptors."""
_NAMED = 50 * MiB  # smaller processes, Ray's helpers, are drawn grey and without a name

_SEED = 20260102
_SAMPLE_EVERY_S = 5.0
_DISCONNECTS = 20
_KINDS = {"stream": 6, "whole": 4, "leave stream": 4, "leave whole": 2, "wrong": 3, "list": 1}
"""What a client does next, with weights."""

_WRONG: list[tuple[bytes, int]] = [
    (b'{"model": "demo", "messages": [', 400),
    (b'{"model": "demo"}', 400),
    (b'{"model": "unknown", "messages": [{"role": "user", "content": "hi"}]}', 404),
    (b'{"model": "demo", "messages": [{"role": "user", "content": "hi"}], "seeds": 1}', 400),
    (
        b'{"model": "demo", "messages": [{"role": "user", "content": '
        b'[{"type": "image", "base64": "AAAA"}, {"type": "text", "text": "?"}]}]}',
        400,
    ),
]


@dataclass
class Soak:
    """The clients, and what they have seen."""

    tasks: list[dict[str, Any]]
    until: float
    done: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    first_answers: dict[int, list[str]] = field(default_factory=dict)

    async def run(self, client: Client, number: int) -> None:
        """One thing after another until the time is over."""
        chance = random.Random(_SEED + number)
        while time.monotonic() < self.until:
            (kind,) = chance.choices(list(_KINDS), weights=list(_KINDS.values()))
            await self._do(kind, client, chance)
            self.done[kind] += 1

    async def _do(self, kind: str, client: Client, chance: random.Random) -> None:
        number = chance.randrange(len(self.tasks))
        if kind in ("stream", "whole"):
            answer = await client.ask(self.tasks[number], stream=kind == "stream")
            self._compare(number, answer)
            if kind == "stream" and answer.complete and not answer.closed:
                self.unexpected.append(f"task {number}: the stream has no end")
        elif kind == "wrong":
            body, status = chance.choice(_WRONG)
            answer = await client.ask(body, stream=False)
            if answer.status != status:
                self.unexpected.append(f"{kind}: {answer.status}, {answer.error}")
        elif kind == "list":
            try:
                await client.loads()
            except aiohttp.ClientError as error:
                self.unexpected.append(f"{kind}: {error!r}")
        else:
            asking = client.ask(self.tasks[number], stream=kind == "leave stream")
            with suppress(TimeoutError):
                answer = await asyncio.wait_for(asking, chance.uniform(0.0, 0.5))
                if answer.status == 0:
                    self.unexpected.append(f"{kind}: {answer.error}")

    def _compare(self, number: int, answer: Answer) -> None:
        if not answer.complete:
            self.unexpected.append(f"task {number}: {answer.error}")
        elif self.first_answers.setdefault(number, answer.texts) != answer.texts:
            self.unexpected.append(f"task {number}: another answer than before")


@dataclass(frozen=True)
class Found:
    """Everything that was seen."""

    soak: Soak
    samples: list[Sample]
    grown: list[Growth]
    loads: list[dict[str, int]]
    freed_s: list[float]

    @property
    def lost_pages(self) -> int:
        """Pages that are neither free nor kept, with nothing running."""
        held = [x["kv_pages"] - x["kv_pages_free"] - x["kv_pages_kept"] for x in self.loads]
        return sum(held)

    @property
    def not_flat(self) -> list[str]:
        """Processes that have grown."""
        return [
            one.name
            for one in self.grown
            if one.uss_growth > max(GROWTH * one.uss, GROWTH_BYTES)
            or one.files_growth > FILES_GROWTH
        ]

    @property
    def good(self) -> bool:
        """Whether all of it is as it should be."""
        return not (self.soak.unexpected or self.lost_pages or self.not_flat)

    def to_json(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "requests": dict(self.soak.done),
            "unexpected": self.soak.unexpected,
            "lost_pages": self.lost_pages,
            "not_flat": self.not_flat,
            "growth": [asdict(one) for one in self.grown],
            "seconds_until_rows_are_free": sorted(self.freed_s),
            "replicas": self.loads,
            "samples": [asdict(one) for one in self.samples],
        }

    def table(self) -> str:
        """For people."""
        requests = ", ".join(f"{count} x {kind}" for kind, count in self.soak.done.items())
        lines = [
            ["requests", requests],
            ["with an unexpected end", str(len(self.soak.unexpected))],
            ["pages lost", str(self.lost_pages)],
        ]
        if self.freed_s:
            times = f"{median(self.freed_s) * 1e3:.0f} / {max(self.freed_s) * 1e3:.0f} ms"
            lines.append(["rows free after a disconnect, p50 / max", times])
        processes: dict[str, Callable[[Growth], str]] = {
            "process": lambda one: one.name,
            "memory": lambda one: f"{one.uss / MiB:.0f} MiB",
            "memory grown by": lambda one: f"{one.uss_growth / MiB:+.1f} MiB",
            "files": lambda one: str(one.files),
            "files grown by": lambda one: f"{one.files_growth:+d}",
        }
        return f"{aligned(lines, names=1)}\n\n{table(self.grown, processes, names=0)}"

    def panels(self) -> list[Panel]:
        """Memory and descriptors of each process over time."""

        def panel(label: str, value: Callable[[Sample], float]) -> Panel:
            def draw(axes: Any) -> None:
                for name, own in by_process(self.samples):
                    style: dict[str, Any] = {"color": "lightgrey", "zorder": 1}
                    if max(one.uss for one in own) > _NAMED:
                        style = {"label": name}
                    axes.plot([one.at / 60 for one in own], list(map(value, own)), **style)
                axes.set(ylabel=label, xlabel="minutes", ylim=0)

            return draw

        memory = panel("memory of its own (USS), MiB", lambda one: one.uss / MiB)
        return [memory, panel("file descriptors", lambda one: one.files)]


async def soak(server: Server, seconds: float, clients: int) -> Found:
    """The load, the watching, and the checks after it."""
    run = Soak(demo_tasks(40), until=time.monotonic() + seconds)
    endpoint = Endpoint(server.address, "demo")
    async with Client(endpoint) as client:
        async with sampled(server, _SAMPLE_EVERY_S) as samples:
            await asyncio.gather(*(run.run(client, number) for number in range(clients)))
        grown = growth(samples, seconds * WARM_UP, seconds)
        loads = await idle(client)
    return Found(run, samples, grown, loads, await disconnect(endpoint, _DISCONNECTS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
    replicas = {"min_replicas": options.replicas, "max_replicas": options.replicas}
    with serving({"models": [DEMO | replicas]}) as server:
        say(f"{options.clients} clients for {options.minutes:g} minutes")
        found = asyncio.run(soak(server, options.minutes * 60, options.clients))
    print(found.table())
    for line in found.soak.unexpected[:10]:
        say(f"  {line[:200]}")
    data = about("soak", options) | found.to_json()
    write(options.out, "soak", data, found.panels(), share_x=True)
    return 0 if found.good else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.reliability.soak", __doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0)
    add("--clients", type=int, default=8)
    add("--replicas", type=int, default=1)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
