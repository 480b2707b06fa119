"""Memory of the graph while large pictures pass: ``python -m benchmarks.images.memory``.

Serves the demo model by a real ``serve run``. Clients send pictures of 5 MB (uncompressed, so that
decoding takes little time), each a different one. Every second the memory of all processes of the
server is read; the object store is part of Ray's `raylet`.

Prints a table, writes ``pictures-memory.json`` and, with matplotlib, ``pictures-memory.png``. Exits
with 1 if a request fails, or if one of the processes that pictures pass is not flat: in the last
third of the pictures it has grown by more than 5 % and 8 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import httpx
from PIL import Image

from benchmarks.engine.report import aligned, pyplot, say
from benchmarks.harness.processes import Sample, sample
from benchmarks.harness.server import DEMO, TUNED, Server, serving

MiB = 2**20
GROWTH, GROWTH_BYTES = 0.05, 8 * MiB
WATCHED = ("Ingress", "ImagePreprocessor", "Model:", "ProxyActor", "haproxy", "raylet")
"""How the names of the processes begin that pictures, or parts of them, pass."""

_SIDE = 1290  # pixels of three bytes: 5 MB
_SALTS = 64  # bytes that differ between two pictures
_CACHE_BYTES = 4 * MiB  # full after a tenth of the pictures, and of no use for any
_BEFORE = (
    b'{"model": "demo", "messages": [{"role": "user", "content": [{"type": "image", "base64": "'
)
_AFTER = (
    b'"}, {"type": "text", "text": "What is in this image?"}]}], '
    b'"generation_config": {"max_new_tokens": 4}}'
)


@dataclass
class Pictures:
    """What is sent, and how it went.

    Attributes:
        passed: seconds from the start to the end of each picture's answer.
        failures: what was answered instead.
    """

    count: int
    until: float
    start: float
    sent: int = 0
    passed: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def stop(self) -> None:
        """Send no more."""
        self.count = 0

    async def client(self, http: httpx.AsyncClient, file: bytearray, number: int) -> None:
        """One picture after the other, until all are sent or the time is over."""
        chance = random.Random(number)
        own = bytearray(file)
        while self.sent < self.count and time.monotonic() < self.until:
            self.sent += 1
            for _ in range(_SALTS):
                own[chance.randrange(len(own) // 2, len(own))] = chance.randrange(256)
            body = _BEFORE + base64.b64encode(own) + _AFTER
            try:
                response = await http.post("/v1/tasks", content=body)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
                continue
            if response.status_code != 200:
                self.failures.append(response.text)
            self.passed.append(time.monotonic() - self.start)
            if len(self.passed) % 50 == 0:
                say(f"{len(self.passed)} pictures")


def make_picture() -> bytearray:
    """A picture of 5 MB in a format without compression."""
    file = io.BytesIO()
    pixels = random.Random(0).randbytes(_SIDE * _SIDE * 3)
    Image.frombytes("RGB", (_SIDE, _SIDE), pixels).save(file, "BMP")
    return bytearray(file.getvalue())


@dataclass(frozen=True)
class Level:
    """Resident memory of a process, in bytes: the median of some seconds.

    Attributes:
        first, middle, last: after a third and two thirds of the pictures, and at their end.
        peak: the highest that was seen.
    """

    name: str
    first: float
    middle: float
    last: float
    peak: int

    @property
    def is_flat(self) -> bool:
        """Whether it has grown little in the last third."""
        return self.last - self.middle <= GROWTH * self.middle + GROWTH_BYTES


def levels(samples: Sequence[Sample], passed: Sequence[float]) -> list[Level]:
    """Of the watched processes, the largest first."""
    ends = [passed[len(passed) * third // 3 - 1] for third in (1, 2, 3)]
    width = max(3.0, passed[-1] / 20)
    found = []
    for pid in dict.fromkeys(one.pid for one in samples):
        own = [one for one in samples if one.pid == pid]
        # A replica that is asked something adds the method to its title.
        name = min((one.name for one in own), key=len)
        near = [[one.rss for one in own if end - width <= one.at <= end] for end in ends]
        if name.startswith(WATCHED) and all(near):
            first, middle, last = (float(median(some)) for some in near)
            peak = max(one.rss for one in own)
            found.append(Level(name, first, middle, last, peak))
    return sorted(found, key=lambda one: -one.peak)


async def _watch(server: Server, start: float, samples: list[Sample]) -> None:
    while True:
        samples += await asyncio.to_thread(sample, server.process, time.monotonic() - start)
        await asyncio.sleep(1.0)


async def send(
    server: Server, count: int, seconds: float, clients: int
) -> tuple[Pictures, list[Sample]]:
    """Send the pictures and watch."""
    start = time.monotonic()
    pictures = Pictures(count, until=start + seconds, start=start)
    samples: list[Sample] = []
    watching = asyncio.create_task(_watch(server, start, samples))
    # Who ends this early still sees what there is, and the server ends with it.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pictures.stop)
    file = make_picture()
    async with httpx.AsyncClient(base_url=server.address, timeout=600) as http:
        await asyncio.gather(*(pictures.client(http, file, n) for n in range(clients)))
    watching.cancel()
    return pictures, samples


def table(found: Sequence[Level]) -> str:
    """For people."""
    lines = [["process", "after 1/3", "after 2/3", "at the end", "peak", ""]]
    for one in found:
        memory = [one.first, one.middle, one.last, one.peak]
        cells = [f"{value / MiB:.0f} MiB" for value in memory]
        lines.append([one.name, *cells, "flat" if one.is_flat else "GROWS"])
    return aligned(lines, names=1)


def plot(samples: Sequence[Sample], file: Path) -> bool:
    """Memory over time; False without matplotlib."""
    if (plt := pyplot()) is None:
        return False
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    for pid in dict.fromkeys(one.pid for one in samples):
        own = [one for one in samples if one.pid == pid]
        name = min((one.name for one in own), key=len)
        if name.startswith(WATCHED):
            axes.plot([one.at for one in own], [one.rss / MiB for one in own], label=name)
    axes.set(ylabel="resident memory, MiB", xlabel="seconds", ylim=0)
    axes.legend()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.images.memory")
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop then, whatever is left")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--tuned", action="store_true", help="Ray Serve's tuned mode")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args(arguments)
    # So that the server ends with this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    args = {"models": [DEMO | {"engine": {"image_cache_bytes": _CACHE_BYTES}}]}
    mode = TUNED if options.tuned else {}
    with tempfile.TemporaryDirectory() as folder, serving(args, Path(folder), mode) as server:
        pictures, samples = asyncio.run(
            send(server, options.pictures, options.seconds, options.clients)
        )
    passed, failures = pictures.passed, pictures.failures
    say(f"{len(passed)} pictures of 5 MB in {passed[-1] if passed else 0:.0f} s")
    for line in failures[:10]:
        say(f"  {line[:200]}")
    if len(passed) < 3:
        return 1
    found = levels(samples, passed)
    say(table(found))
    options.output.mkdir(parents=True, exist_ok=True)
    data = {
        "pictures": len(passed),
        "clients": options.clients,
        "tuned": options.tuned,
        "failures": failures,
        "levels": [asdict(one) for one in found],
        "samples": [asdict(one) for one in samples],
    }
    (options.output / "pictures-memory.json").write_text(json.dumps(data, indent=1) + "\n")
    if not plot(samples, options.output / "pictures-memory.png"):
        say("no picture: matplotlib is not installed (the extra `bench`)")
    return 0 if found and not failures and all(one.is_flat for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
