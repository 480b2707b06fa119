"""The random numbers of one task, by the step that uses them.

`generate` draws ``[num_return_sequences, vocab]`` in each step, whatever the step needs of it. Here
sequences of a task may be at different steps, because guesses about some of them were right, and a
step may be computed before it is known whether its input is right. So what is drawn for a step is
kept until no sequence can need it any more: no draw is lost, and none is made twice.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch

from engine.platform.platforms import platform_of
from engine.sampling.draws.exponential import ExponentialStream, draw

MAX_BYTES = 64 * 2**20
"""Of the random numbers that one task keeps beyond those of a single step."""


class Place(NamedTuple):
    """Where a token is drawn.

    Attributes:
        sequence: its index among those of its task.
        step: how many tokens of its answer come before.
    """

    sequence: int
    step: int


class Noise:
    """Numbers of Exp(1) from the task's own generator, drawn step by step in order."""

    def __init__(self, num_sequences: int, seed: int, device: torch.device) -> None:
        self._num_sequences = num_sequences
        self._device = device
        self._source = source_of_noise(seed, device)
        self._first = 0  # the step of the first of those that are kept
        self._steps: deque[torch.Tensor] = deque()

    @property
    def num_kept(self) -> int:
        """How many steps' numbers are kept."""
        return len(self._steps)

    def of(self, places: Sequence[Place], vocab_size: int) -> torch.Tensor:
        """The numbers of some places, at least one, which `forget` has not dropped.

        Returns:
            float32 [places, vocab_size]; not to be changed.
        """
        draw_noise([(self, places)], vocab_size)
        last = max(place.step for place in places)
        if [place.sequence for place in places] == list(range(self._num_sequences)) and all(
            place.step == last for place in places
        ):
            return self._steps[last - self._first]
        rows = [self._steps[place.step - self._first][place.sequence] for place in places]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def lacks(self, step: int) -> bool:
        """Whether the numbers of a step are still to be drawn, or those of one before it."""
        return self._first + len(self._steps) <= step

    def room(self, vocab_size: int) -> tuple[NoiseSource, torch.Tensor]:
        """For the next step that lacks its numbers: where they come from, and where to."""
        room = torch.empty(self._num_sequences, vocab_size, device=self._device)
        return self._source, room

    def append(self, drawn: torch.Tensor) -> None:
        """Keep the numbers of that step."""
        self._steps.append(drawn)

    def forget(self, step: int) -> None:
        """Drop the numbers of all steps before this one."""
        while self._steps and self._first < step:
            self._steps.popleft()
            self._first += 1


def draw_noise(wanted: Sequence[tuple[Noise, Sequence[Place]]], vocab_size: int) -> None:
    """Draw what several tasks need for some places, at once; what is there is not drawn again."""
    last = [(noise, max(place.step for place in places)) for noise, places in wanted]
    while lacking := [noise for noise, step in last if noise.lacks(step)]:
        rooms = [noise.room(vocab_size) for noise in lacking]
        fill(rooms)
        for noise, (_, drawn) in zip(lacking, rooms, strict=True):
            noise.append(drawn)


NoiseSource = ExponentialStream | torch.Generator


def source_of_noise(seed: int, device: torch.device) -> NoiseSource:
    """The numbers of a torch generator of this device."""
    if platform_of(device).shares_host_memory:
        return ExponentialStream(seed)
    return torch.Generator(device).manual_seed(seed)


def fill(rooms: Sequence[tuple[NoiseSource, torch.Tensor]]) -> None:
    """Fill contiguous float32 tensors with the next numbers of their sources, each another one."""
    streams: list[tuple[ExponentialStream, torch.Tensor]] = []
    for source, room in rooms:
        if isinstance(source, ExponentialStream):
            streams.append((source, room))
        else:
            room.exponential_(1, generator=source)
    if streams:
        draw(streams)


def max_steps_ahead(num_sequences: int, vocab_size: int) -> int:
    """How many steps a sequence may be ahead of the slowest one of its task, by `MAX_BYTES`."""
    return MAX_BYTES // (num_sequences * vocab_size * 4)
