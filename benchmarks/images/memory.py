"""Memory of the graph while large images pass: ``python -m benchmarks.images.memory``.

Serves the demo model by a real ``serve run``. Clients send images of 5 MB (uncompressed, so that
decoding takes little time), each a different one. Every second the memory of all processes of the
server is read; the object store is part of Ray's `raylet`.

Prints a table, writes ``images-memory.json`` and, with matplotlib, ``images-memory.png``. Exits
with 1 if a request fails, or if one of the processes that images pass is not flat: in the last
third of the images it has grown by more than 5 % and 8 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from typing import Any

from PIL import Image

from benchmarks.harness import command
from benchmarks.harness.client import Client, Endpoint
from benchmarks.harness.load import at_once
from benchmarks.harness.processes import Sample, by_process, sampled
from benchmarks.harness.report import about, middle, say, table, write
from benchmarks.harness.server import DEMO, TUNED, Server, serving

MiB = 2**20
GROWTH, GROWTH_BYTES = 0.05, 8 * MiB
WATCHED = ("Ingress", "ImagePreprocessor", "Model:", "ProxyActor", "haproxy", "raylet")
"""How the names of the processes begin that images, or parts of them, pass."""

_SIDE = 1290  # pixels of three bytes: 5 MB
_SALTS = 64  # bytes that differ between two images
_CACHE_BYTES = 4 * MiB  # full after a tenth of the images, and of no use for any
_BEFORE = (
    b'{"model": "demo", "messages": [{"role": "user", "content": [{"type": "image", "base64": "'
)
_AFTER = (
    b'"}, {"type": "text", "text": "What is in this image?"}]}], '
    b'"generation_config": {"max_new_tokens": 4}}'
)


@dataclass
class Images:
    """What is sent, and how it went.

    Attributes:
        count: how many there are.
        seconds: no more are sent after them.
        passed: seconds from the start to the end of each image's answer.
        failures: what was answered instead.
    """

    count: int
    seconds: float
    passed: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def bodies(self, start: float) -> Iterator[bytes]:
        """Requests, each with another image of 5 MB in a format without compression."""
        chance, file = random.Random(0), io.BytesIO()
        pixels = chance.randbytes(_SIDE * _SIDE * 3)
        Image.frombytes("RGB", (_SIDE, _SIDE), pixels).save(file, "BMP")
        image = bytearray(file.getvalue())
        for number in count():
            if number >= self.count or time.monotonic() > start + self.seconds:
                return
            for _ in range(_SALTS):
                image[chance.randrange(len(image) // 2, len(image))] = chance.randrange(256)
            yield _BEFORE + base64.b64encode(image) + _AFTER

    def stop(self) -> None:
        """Send no more."""
        self.count = 0

    async def send(self, server: Server, clients: int) -> list[Sample]:
        """Send all and watch the server's processes."""
        # SIGTERM ends this early, and what was found until then is still told.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stop)
        start = time.monotonic()

        async def one(body: bytes) -> None:
            answer = await client.ask(body, stream=False)
            if answer.error is not None:
                self.failures.append(answer.error)
            self.passed.append(time.monotonic() - start)

        endpoint = Endpoint(server.address, "demo")
        async with Client(endpoint) as client, sampled(server, 1.0) as samples:
            await at_once(self.bodies(start), clients, one, "images")
        return samples


@dataclass(frozen=True)
class Level:
    """Resident memory of a process, in bytes: the median of some seconds.

    Attributes:
        first, middle, last: after a third and two thirds of the images, and at their end.
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
    for name, own in by_process(samples):
        near = [[one for one in own if end - width <= one.at <= end] for end in ends]
        if name.startswith(WATCHED) and all(near):
            first, second, last = (middle(some, lambda one: one.rss) for some in near)
            found.append(Level(name, first, second, last, max(one.rss for one in own)))
    return sorted(found, key=lambda one: -one.peak)


def _mebibytes(of: Callable[[Level], float]) -> Callable[[Level], str]:
    return lambda level: f"{of(level) / MiB:.0f} MiB"


_COLUMNS: dict[str, Callable[[Level], str]] = {
    "process": lambda level: level.name,
    "after 1/3": _mebibytes(lambda level: level.first),
    "after 2/3": _mebibytes(lambda level: level.middle),
    "at the end": _mebibytes(lambda level: level.last),
    "peak": _mebibytes(lambda level: level.peak),
    "": lambda level: "flat" if level.is_flat else "GROWS",
}


def _panel(samples: Sequence[Sample], axes: Any) -> None:
    """Memory over time."""
    for name, own in by_process(samples):
        if name.startswith(WATCHED):
            axes.plot([one.at for one in own], [one.rss / MiB for one in own], label=name)
    axes.set(ylabel="resident memory, MiB", xlabel="seconds", ylim=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see the module's docstring."""
    options = _parse(arguments)
    command.end_with_servers()
    args = {"models": [DEMO | {"engine": {"image_cache_bytes": _CACHE_BYTES}}]}
    images = Images(options.images, options.seconds)
    with serving(args, environment=TUNED if options.tuned else {}) as server:
        samples = asyncio.run(images.send(server, options.clients))
    passed, failures = images.passed, images.failures
    say(f"{len(passed)} images of 5 MB in {passed[-1] if passed else 0:.0f} s")
    for line in failures[:10]:
        say(f"  {line[:200]}")
    if len(passed) < 3:
        return 1
    found = levels(samples, passed)
    print(table(found, _COLUMNS, names=0))
    data = about("images-memory", options) | {"images": len(passed), "failures": failures}
    data["levels"] = [asdict(one) for one in found]
    data["samples"] = [asdict(one) for one in samples]
    write(options.out, "images-memory", data, [partial(_panel, samples)])
    return 0 if found and not failures and all(one.is_flat for one in found) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser("benchmarks.images.memory", __doc__)
    add = parser.add_argument
    add("--images", type=int, default=1000)
    add("--seconds", type=float, default=3600.0, help="stop then, whatever is left")
    add("--clients", type=int, default=4)
    add("--tuned", action="store_true", help="Ray Serve's tuned mode")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
