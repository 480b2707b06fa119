"""What is sent, and when: jobs of several kinds, and the two kinds of load."""

from __future__ import annotations

import asyncio
import io
import random
import string
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from benchmarks.harness.client import Answer, Job
from benchmarks.harness.models import ANSWER_TOKENS, PROMPT_TOKENS
from benchmarks.harness.served_model import ServedModel
from demo.data.shapes import HELD_OUT_SEED, Picture, draw_picture

PREFIX_TOKENS = 512
_SEED = 20260101
_COUNTING = "Count from {} to 99."
# What the demo model answers to these with 128 tokens or more. It ends sooner from other numbers.
_COUNTING_LONG = "Count from {} to 40."
_LONG_FROM = (1, 4)
_ASKING = "What is in this image?"
_DESCRIBING = "Describe this picture at length."
_TILE = (448, 448)  # pixels: what InternVL reads as one tile, and others about as much of


def workload_names() -> list[str]:
    """The kinds of jobs."""
    return list(_MAKERS)


def jobs(workload: str, model: ServedModel, stream: str) -> Iterator[Job]:
    """Endlessly many jobs of mixed lengths, different ones.

    The lengths are the same for every ``stream``; the texts are not, so that nobody finds a prompt
    in a cache that an earlier run has left behind.
    """
    lengths = random.Random(_SEED)
    texts = random.Random(f"{_SEED}/{workload}/{stream}")
    number = 0
    while True:
        prompt, answer = lengths.randint(*PROMPT_TOKENS), lengths.randint(*ANSWER_TOKENS)
        yield _MAKERS[workload](model, texts, number, prompt, answer)
        number += 1


def _text(
    model: ServedModel,
    texts: random.Random,
    number: int,
    prompt: int,
    answer: int,
    before: str = "",
) -> Job:
    """Random letters; for a model that has to be told, what to write stands after them."""
    text = before + (_letters(texts, prompt) if model.padded else "")
    return Job(text + (_COUNTING.format(texts.randrange(50)) if model.told else ""), answer)


def _warm(model: ServedModel, texts: random.Random, number: int, prompt: int, answer: int) -> Job:
    """All begin alike."""
    beginning = _letters(random.Random(_SEED), PREFIX_TOKENS)
    return _text(model, texts, number, prompt, answer, beginning)


def _cold(model: ServedModel, texts: random.Random, number: int, prompt: int, answer: int) -> Job:
    """As long as the warm ones, but none begins as another."""
    return _text(model, texts, number, prompt, answer, _letters(texts, PREFIX_TOKENS))


def _image(model: ServedModel, texts: random.Random, number: int, prompt: int, answer: int) -> Job:
    """A picture, and a long answer.

    The demo model answers a question about a picture in five tokens; so its picture belongs to an
    earlier turn, and it goes on by counting.
    """
    picture, png = _picture(model, texts)
    if not model.padded:
        counting = _COUNTING_LONG.format(texts.randint(*_LONG_FROM))
        return Job(counting, answer, png, earlier=((_ASKING, picture.description),))
    text = _DESCRIBING if model.told else _letters(texts, prompt)
    return Job(text, answer, png)


def _image_short(
    model: ServedModel, texts: random.Random, number: int, prompt: int, answer: int
) -> Job:
    """A picture, and a question that a trained model answers in a few words."""
    return Job(_ASKING, answer, _picture(model, texts)[1])


def _picture(model: ServedModel, texts: random.Random) -> tuple[Picture, bytes]:
    """Another one each time, so that nobody finds it in a cache; and its file."""
    picture = draw_picture(HELD_OUT_SEED + texts.getrandbits(32))
    image = picture.image.resize(_TILE) if model.padded else picture.image
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)  # the best would take the client 0.2 s
    return picture, png.getvalue()


def _mixed(model: ServedModel, texts: random.Random, number: int, prompt: int, answer: int) -> Job:
    """Every second one has a picture."""
    return (_image if number % 2 else _text)(model, texts, number, prompt, answer)


_MAKERS: dict[str, Callable[[ServedModel, random.Random, int, int, int], Job]] = {
    "text": _text,
    "prefix-cold": _cold,
    "prefix-warm": _warm,
    "images": _image,
    "images-short": _image_short,
    "mixed": _mixed,
}
WITH_IMAGES = frozenset({"images", "images-short", "mixed"})


def _letters(texts: random.Random, length: int) -> str:
    return "".join(texts.choices(string.ascii_lowercase + " ", k=length))


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
    """Who sends jobs: `benchmarks.harness.client.Client`, or something in its place."""

    async def send(self, job: Job, answers: list[Answer] | None = None) -> Answer:
        """See `Client.send`."""
        ...


async def run(client: Sender, load: Load, source: Iterator[Job]) -> Run:
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
    client: Sender, source: Iterator[Job], answers: list[Answer], *, endless: bool
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
