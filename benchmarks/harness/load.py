"""What is sent, and when: jobs of several kinds, and the two kinds of load."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol, TypeVar

from benchmarks.harness.client import Answer, Job
from benchmarks.harness.models import ServedModel
from benchmarks.harness.report import say
from benchmarks.harness.tasks import ANSWER_TOKENS, PROMPT_TOKENS, letters
from demo.data.shapes import HELD_OUT_SEED, Drawing, draw_image

ItemT = TypeVar("ItemT")
FoundT = TypeVar("FoundT")

PREFIX_TOKENS = 512
_TELL_EVERY_S = 10.0
_SEED = 20260101
_COUNTING = "Count from {} to 99."
# What the demo model answers to these with 128 tokens or more. It ends sooner from other numbers.
_COUNTING_LONG = "Count from {} to 40."
_LONG_FROM = (1, 4)
_ASKING = "What is in this image?"
_DESCRIBING = "Describe this picture at length."
_TILE = (448, 448)  # pixels: what InternVL reads as one tile, and others about as much of


@dataclass(frozen=True)
class _Maker:
    """Makes one job: its number, the lengths of prompt and answer, and the source of its texts."""

    model: ServedModel
    texts: random.Random
    number: int
    prompt: int
    answer: int

    def text(self, before: str = "") -> Job:
        """Random letters; for a model that has to be told, what to write stands after them."""
        text = before + (letters(self.texts, self.prompt) if self.model.padded else "")
        told = _COUNTING.format(self.texts.randrange(50)) if self.model.told else ""
        return Job(text + told, self.answer)

    def prefix_warm(self) -> Job:
        """All begin alike."""
        return self.text(letters(random.Random(_SEED), PREFIX_TOKENS))

    def prefix_cold(self) -> Job:
        """As long as the warm ones, but no two begin alike."""
        return self.text(letters(self.texts, PREFIX_TOKENS))

    def images(self) -> Job:
        """An image, and a long answer.

        The demo model answers a question about an image in five tokens; so its image belongs to an
        earlier turn, and it goes on by counting.
        """
        drawn, png = self._image()
        if not self.model.padded:
            counting = _COUNTING_LONG.format(self.texts.randint(*_LONG_FROM))
            return Job(counting, self.answer, png, earlier=((_ASKING, drawn.description),))
        text = _DESCRIBING if self.model.told else letters(self.texts, self.prompt)
        return Job(text, self.answer, png)

    def images_short(self) -> Job:
        """An image, and a question that a trained model answers in a few words."""
        return Job(_ASKING, self.answer, self._image()[1])

    def mixed(self) -> Job:
        """Every second one has an image."""
        return self.images() if self.number % 2 else self.text()

    def _image(self) -> tuple[Drawing, bytes]:
        """A different one each time, so that none is found in a cache; and its file."""
        drawn = draw_image(HELD_OUT_SEED + self.texts.getrandbits(32))
        image = drawn.image.resize(_TILE) if self.model.padded else drawn.image
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)  # the best would take the client 0.2 s
        return drawn, png.getvalue()


_WORKLOADS: dict[str, Callable[[_Maker], Job]] = {
    "text": _Maker.text,
    "prefix-cold": _Maker.prefix_cold,
    "prefix-warm": _Maker.prefix_warm,
    "images": _Maker.images,
    "images-short": _Maker.images_short,
    "mixed": _Maker.mixed,
}
WITH_IMAGES = frozenset({"images", "images-short", "mixed"})


def workload_names() -> list[str]:
    """The kinds of jobs."""
    return list(_WORKLOADS)


def jobs(workload: str, model: ServedModel, stream: str) -> Iterator[Job]:
    """Endlessly many jobs of mixed lengths, different ones, half of them sampled.

    A trained model's are greedy, because it would end sampled answers where it likes.

    The lengths are the same for every ``stream``; the texts are not, so that no prompt is found in
    a cache that an earlier run has left behind.
    """
    lengths = random.Random(_SEED)
    texts = random.Random(f"{_SEED}/{workload}/{stream}")
    for number in count():
        prompt, answer = lengths.randint(*PROMPT_TOKENS), lengths.randint(*ANSWER_TOKENS)
        job = _WORKLOADS[workload](_Maker(model, texts, number, prompt, answer))
        yield job if model.told or not number % 2 else replace(job, seed=number)


@dataclass(frozen=True)
class Load:
    """How requests arrive: ``clients`` that each wait for their answer, or ``rate`` a second.

    Attributes:
        clients: closed loop: how many there are; they join one after the other in the ramp.
        rate: open loop: requests a second on average, at the times of a Poisson process,
            whatever the server is doing. One of the two is None.
        ramp_s: how long the load runs before the measurement begins.
        seconds: how long the measurement lasts. What is not finished then is cut off.
    """

    clients: int | None
    rate: float | None
    ramp_s: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.clients} clients" if self.rate is None else f"{self.rate:g} requests/s"


@dataclass(frozen=True)
class Run:
    """All answers of a load; what came from ``start`` to ``end`` counts for throughput."""

    answers: list[Answer]
    start: float
    end: float


class Sender(Protocol):
    """What sends jobs: `benchmarks.harness.client.Client`, or something in its place."""

    async def send(self, job: Any, answers: list[Answer] | None = None) -> Answer:
        """See `Client.send`."""
        ...


async def run(client: Sender, load: Load, source: Iterator[Any]) -> Run:
    """Put a load on a server for as long as it says."""
    answers: list[Answer] = []
    begin = time.perf_counter()
    start = begin + load.ramp_s
    end = start + load.seconds
    arrivals = _open(load.rate) if load.rate is not None else _closed(load)
    with suppress(TimeoutError):
        async with asyncio.timeout(end - time.perf_counter()), asyncio.TaskGroup() as group:
            async for follow_up in arrivals:
                group.create_task(_client(client, source, answers, endless=follow_up))
            await asyncio.sleep(end - time.perf_counter())  # clients that came to an end
    return Run(answers, start, min(end, time.perf_counter()))


async def _client(
    client: Sender, source: Iterator[Any], answers: list[Answer], *, endless: bool
) -> None:
    while True:
        answer = await client.send(next(source), answers)
        if not endless:
            return
        if answer.failure is not None:
            await asyncio.sleep(0.1)  # a server that refuses must not be flooded


async def _closed(load: Load) -> AsyncIterator[bool]:
    assert load.clients is not None
    for _ in range(load.clients):
        yield True
        await asyncio.sleep(load.ramp_s / load.clients)


async def _open(rate: float) -> AsyncIterator[bool]:
    """Exponential gaps between arrivals; a late one does not delay those after it."""
    gaps = random.Random(_SEED)
    due = time.perf_counter()
    while True:
        due += gaps.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield False


async def at_once(
    items: Iterable[ItemT],
    clients: int,
    do: Callable[[ItemT], Awaitable[FoundT]],
    progress: str = "",
) -> list[FoundT]:
    """Do something with all items, by a number of clients that take one after the other.

    Args:
        items: taken when a client is free for the next one.
        clients: how many there are.
        do: what is done with one.
        progress: what was done with those that are counted every few seconds; "" tells nothing.

    Returns:
        What came of each, in the order of the items.
    """
    found: dict[int, FoundT] = {}
    numbered = enumerate(items)

    async def client() -> None:
        for number, item in numbered:
            found[number] = await do(item)

    async def tell() -> None:
        while True:
            await asyncio.sleep(_TELL_EVERY_S)
            say(f"  {len(found)} {progress}")

    telling = asyncio.create_task(tell()) if progress else None
    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        if telling is not None:
            telling.cancel()
    return [found[number] for number in sorted(found)]
