"""Minutes of mixed load with clients that leave: ``python -m benchmarks.reliability.soak --minutes 30``.

Serves the demo model by a real ``serve run``. Clients send texts and pictures, streamed or not,
leave streams in the middle and requests before their answer, and send wrong requests. Every answer
is compared with the first one to the same task. Every few seconds all processes of the server are
looked at. In the end, when everything is quiet, no page of a KV cache may be missing, and it is
measured how soon the rows of a client that goes away are free.

Prints tables, writes ``soak.json`` and, with matplotlib, ``soak.png``. Exits with 1 if an answer
differs, a request has an unexpected end, a page is lost, or a process of the server grows.
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
from statistics import median
from typing import Any

import httpx

from benchmarks.engine.report import aligned, pyplot, say
from benchmarks.harness.processes import Growth, Sample, growth, sample
from benchmarks.harness.server import DEMO, Server, serving
from benchmarks.reliability.disconnects import leave
from benchmarks.reliability.tasks import idle, make_tasks, stream

WARM_UP = 1 / 3
"""The share of the time in which caches fill, allocators find their size and code is loaded."""
MiB = 2**20
GROWTH, GROWTH_BYTES, FILES_GROWTH = 0.05, 8 * MiB, 8
"""A process that has grown by more after the warm-up is not flat: by this share of its memory and
so many bytes, or by so many descriptors."""
_NAMED = 50 * MiB  # smaller processes, Ray's helpers, are drawn grey and without a name

_SEED = 20260102
_SAMPLE_EVERY_S = 5.0
_LEAVERS = 20
_KINDS = {"stream": 6, "whole": 4, "leave stream": 4, "leave whole": 2, "wrong": 3, "list": 1}
"""What a client does next, with weights."""

_WRONG: list[tuple[bytes, int]] = [
    (b'{"model": "demo", "messages": [', 400),
    (b'{"model": "demo"}', 400),
    (b'{"model": "nobody", "messages": [{"role": "user", "content": "hi"}]}', 404),
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
    start: float
    done: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    first_answers: dict[int, str] = field(default_factory=dict)

    async def client(self, http: httpx.AsyncClient, number: int) -> None:
        """One thing after another until the time is over."""
        chance = random.Random(_SEED + number)
        while time.monotonic() < self.until:
            (kind,) = chance.choices(list(_KINDS), weights=list(_KINDS.values()))
            try:
                await self._do(kind, http, chance)
                self.done[kind] += 1
            except httpx.HTTPError as error:
                self.unexpected.append(f"{kind}: {error!r}")

    async def _do(self, kind: str, http: httpx.AsyncClient, chance: random.Random) -> None:
        number = chance.randrange(len(self.tasks))
        task = self.tasks[number]
        if kind == "stream":
            answer = await stream(http, task, self.start)
            self._compare(number, answer.text, answer.error)
        elif kind == "whole":
            response = await http.post("/v1/tasks", json=task)
            text = None
            if response.status_code == 200:
                choices = response.json()["choices"]
                text = "\0".join(choice["message"]["content"] for choice in choices)
            self._compare(number, text, response.text)
        elif kind == "wrong":
            body, status = chance.choice(_WRONG)
            response = await http.post("/v1/tasks", content=body)
            self._expect(kind, response.status_code == status, response.text)
        elif kind == "list":
            response = await http.get("/v1/models")
            self._expect(kind, response.status_code == 200, response.text)
        else:
            await _leave(http, task, chance.uniform(0.0, 0.5), streamed=kind == "leave stream")

    def _compare(self, number: int, text: str | None, error: str | None) -> None:
        if text is None:
            self.unexpected.append(f"task {number}: {error}")
        elif self.first_answers.setdefault(number, text) != text:
            self.unexpected.append(f"task {number}: another answer than before")

    def _expect(self, kind: str, is_so: bool, said: str) -> None:
        if not is_so:
            self.unexpected.append(f"{kind}: {said}")


async def _leave(
    http: httpx.AsyncClient, task: dict[str, Any], after_s: float, *, streamed: bool
) -> None:
    """Ask, and be gone after so many seconds."""
    try:
        async with asyncio.timeout(after_s):
            if not streamed:
                await http.post("/v1/tasks", json=task)
                return
            async with http.stream("POST", "/v1/tasks?stream=true", json=task) as response:
                async for _ in response.aiter_bytes():
                    pass
    except TimeoutError:
        pass


async def _watch(server: Server, start: float, samples: list[Sample]) -> None:
    while True:
        samples += await asyncio.to_thread(sample, server.process, time.monotonic() - start)
        await asyncio.sleep(_SAMPLE_EVERY_S)


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
            lines.append(["rows free after a client left, p50 / max", times])
        processes = [["process", "memory", "grown by", "files", "grown by"]]
        processes += [
            [
                one.name,
                f"{one.uss / MiB:.0f} MiB",
                f"{one.uss_growth / MiB:+.1f} MiB",
                str(one.files),
                f"{one.files_growth:+d}",
            ]
            for one in self.grown
        ]
        return f"{aligned(lines, names=1)}\n\n{aligned(processes, names=0)}"

    def plot(self, file: Path) -> bool:
        """Memory and descriptors of each process over time; False without matplotlib."""
        if (plt := pyplot()) is None:
            return False
        figure, axes = plt.subplots(2, 1, figsize=(11, 8), sharex=True, layout="constrained")
        for pid in dict.fromkeys(one.pid for one in self.samples):
            own = [one for one in self.samples if one.pid == pid]
            style: dict[str, Any] = {"color": "lightgrey", "zorder": 1}
            if max(one.uss for one in own) > _NAMED:
                style = {"label": min((one.name for one in own), key=len)}
            minutes = [one.at / 60 for one in own]
            axes[0].plot(minutes, [one.uss / MiB for one in own], **style)
            axes[1].plot(minutes, [one.files for one in own], **style)
        axes[0].set(ylabel="memory of its own (USS), MiB", ylim=0)
        axes[1].set(ylabel="file descriptors", xlabel="minutes", ylim=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
        figure.savefig(file, dpi=110)
        plt.close(figure)
        return True


async def soak(server: Server, seconds: float, clients: int) -> Found:
    """The load, the watching, and the checks after it."""
    start = time.monotonic()
    run = Soak(make_tasks(40), until=start + seconds, start=start)
    samples: list[Sample] = []
    watching = asyncio.create_task(_watch(server, start, samples))
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.address, timeout=600, limits=limits) as http:
        await asyncio.gather(*(run.client(http, number) for number in range(clients)))
        watching.cancel()
        grown = growth(samples, seconds * WARM_UP, seconds)
        replicas = await idle(http)
    return Found(run, samples, grown, replicas, await leave(server.address, _LEAVERS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, prog="python -m benchmarks.reliability.soak"
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    replicas = {"min_replicas": options.replicas, "max_replicas": options.replicas}
    args = {"models": [DEMO | replicas]}
    with tempfile.TemporaryDirectory() as folder, serving(args, Path(folder)) as server:
        say(f"{options.clients} clients for {options.minutes:g} minutes")
        found = asyncio.run(soak(server, options.minutes * 60, options.clients))
    say(found.table())
    for line in found.soak.unexpected[:10]:
        say(f"  {line[:200]}")
    options.output.mkdir(parents=True, exist_ok=True)
    settings = {"minutes": options.minutes, "clients": options.clients, **replicas}
    data = {"settings": settings, **found.to_json()}
    (options.output / "soak.json").write_text(json.dumps(data, indent=1) + "\n")
    if not found.plot(options.output / "soak.png"):
        say("no picture: matplotlib is not installed (the extra `bench`)")
    return 0 if found.good else 1


if __name__ == "__main__":
    sys.exit(main())
