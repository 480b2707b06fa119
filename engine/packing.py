"""What a packed forward is made of, and its numbers on the way to the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.vision import Features


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one sequence in a packed forward.

    Attributes:
        start: where the first token stands in its sequence.
        num_tokens: how many there are.
        pages: the sequence's.
        features: of the image tokens among them.
        rotary: [axes, num_tokens], the tokens' rotary positions where these are not simply where
            they stand.
        whole: runs (start, stop) of the sequence, within the piece, whose tokens see each other.
    """

    start: int
    num_tokens: int
    pages: Sequence[int]
    features: Features | None = None
    rotary: Sequence[Sequence[int]] | None = None
    whole: Sequence[tuple[int, int]] = ()

    @property
    def context(self) -> int:
        """Tokens of the sequence that the last token sees, itself included."""
        return self.start + self.num_tokens

    def positions(self, axis: int) -> Sequence[int]:
        """The rotary positions of the tokens on one axis."""
        return range(self.start, self.context) if self.rotary is None else self.rotary[axis]


def positions(pieces: Sequence[Piece], num_rows: int, axes: int) -> list[list[int]]:
    """The rotary position of every row, on each axis; 0 for padding."""
    rows = [[i for piece in pieces for i in piece.positions(axis)] for axis in range(axes)]
    return [row + [0] * (num_rows - len(row)) for row in rows]


def upload(
    values: Sequence[int] | Sequence[Sequence[int]],
    device: torch.device,
    dtype: torch.dtype = torch.long,
) -> torch.Tensor:
    """A tensor on the device; the host does not wait until it is there."""
    on_cuda = device.type == "cuda"
    return torch.tensor(values, dtype=dtype, pin_memory=on_cuda).to(device, non_blocking=on_cuda)
