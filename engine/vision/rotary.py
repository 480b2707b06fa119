"""Rotary positions of prompts with images, of families where they have several axes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MRopePositions:
    """Rotary positions of a sequence, where they differ from the places of its tokens.

    Attributes:
        prompt: [axes, tokens of the prompt].
        offset: the positions of a generated token less its place in the sequence.
    """

    prompt: np.ndarray
    offset: int

    def without_prompt(self) -> MRopePositions:
        """The same for tokens of the answer alone."""
        return MRopePositions(self.prompt[:, :0], self.offset)

    def of(self, start: int, stop: int) -> list[list[int]]:
        """The positions [axes, stop - start] of tokens of the prompt, or of the answer."""
        axes, length = self.prompt.shape
        if stop <= length:
            return [list(axis) for axis in self.prompt[:, start:stop].tolist()]
        return [list(range(start + self.offset, stop + self.offset))] * axes
