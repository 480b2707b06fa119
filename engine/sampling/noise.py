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
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
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
        last = max(place.step for place in places)
        while self._first + len(self._steps) <= last:
            drawn = torch.empty(self._num_sequences, vocab_size, device=self._device)
            self._steps.append(drawn.exponential_(1, generator=self._generator))
        if [place.sequence for place in places] == list(range(self._num_sequences)) and all(
            place.step == last for place in places
        ):
            return self._steps[last - self._first]
        rows = [self._steps[place.step - self._first][place.sequence] for place in places]
        return rows[0][None] if len(rows) == 1 else torch.stack(rows)

    def forget(self, step: int) -> None:
        """Drop the numbers of all steps before this one."""
        while self._steps and self._first < step:
            self._steps.popleft()
            self._first += 1


def max_steps_ahead(num_sequences: int, vocab_size: int) -> int:
    """How many steps a sequence may be ahead of the slowest one of its task, by `MAX_BYTES`."""
    return MAX_BYTES // (num_sequences * vocab_size * 4)
