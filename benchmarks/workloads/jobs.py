"""The kinds of requests that servers are asked, each as an endless stream of jobs."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count

from benchmarks.harness.client import Job
from benchmarks.harness.models import ServedModel
from benchmarks.harness.tasks import ANSWER_TOKENS, PROMPT_TOKENS, letters
from benchmarks.workloads.real_texts import HALVES, WORKLOADS, real_job
from demo.data.shapes import HELD_OUT_SEED, Drawing, draw_image

PREFIX_TOKENS = 512
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


_MADE: dict[str, Callable[[_Maker], Job]] = {
    "text": _Maker.text,
    "prefix-cold": _Maker.prefix_cold,
    "prefix-warm": _Maker.prefix_warm,
    "images": _Maker.images,
    "images-short": _Maker.images_short,
    "mixed": _Maker.mixed,
}
_ALL_REAL = "real"
_REAL = {_ALL_REAL: list(WORKLOADS)} | {kind.replace(" ", "-"): [kind] for kind in WORKLOADS}
WITH_IMAGES = frozenset({"images", "images-short", "mixed"})
REAL_TEXTS = frozenset(_REAL)
"""Workloads that only a trained model of language has answers to."""


def workload_names() -> list[str]:
    """The kinds of jobs."""
    return [*_MADE, *_REAL]


def jobs(workload: str, model: ServedModel, stream: str) -> Iterator[Job]:
    """Endlessly many jobs, different ones.

    They are of mixed lengths, the same ones for every ``stream``; the texts are not, so that no
    prompt is found in a cache that an earlier run has left behind. Half of them are sampled if
    they are real texts, or if the model's weights are random: a trained model would end sampled
    answers to the others where it likes.
    """
    if workload in _REAL:
        yield from _real_jobs(_REAL[workload], f"{workload}/{stream}")
    lengths = random.Random(_SEED)
    texts = random.Random(f"{_SEED}/{workload}/{stream}")
    for number in count():
        prompt, answer = lengths.randint(*PROMPT_TOKENS), lengths.randint(*ANSWER_TOKENS)
        job = _MADE[workload](_Maker(model, texts, number, prompt, answer))
        yield job if model.told or not number % 2 else replace(job, seed=number)


def _real_jobs(kinds: list[str], stream: str) -> Iterator[Job]:
    """Jobs of each kind in turns, each kind's greedy and sampled in turns.

    The inputs of a kind come in an order of the stream's own, and again when all have been asked.
    """
    order = random.Random(stream)
    inputs = {kind: order.sample(WORKLOADS[kind](), k=len(WORKLOADS[kind]())) for kind in kinds}
    for number in count():
        turn, place = divmod(number, len(kinds))
        own = inputs[kinds[place]]
        half = HALVES[(turn + place) % 2]
        yield real_job(own[turn % len(own)], half, f"{stream}/{number}")
