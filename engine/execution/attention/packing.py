"""What a packed forward is made of, as the numbers that attention and the model take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.vision.features import Features, MRopePositions


@dataclass(frozen=True)
class ScheduledTokens:
    """Consecutive tokens of one sequence in a packed forward.

    Attributes:
        start: where the first token stands in its sequence.
        num_tokens: how many there are.
        pages: the sequence's.
        features: of the image tokens among them.
        rotary: the sequence's rotary positions, where a token's are not simply where it stands.
        bidirectional_spans: runs (start, stop) of the sequence, within these tokens, whose tokens
            see each other.
    """

    start: int
    num_tokens: int
    pages: Sequence[int]
    features: Features | None = None
    rotary: MRopePositions | None = None
    bidirectional_spans: Sequence[tuple[int, int]] = ()

    @property
    def context(self) -> int:
        """Tokens of the sequence that the last token sees, itself included."""
        return self.start + self.num_tokens

    def positions(self, axes: int) -> Sequence[Sequence[int]]:
        """The rotary positions [axes, num_tokens] of the tokens."""
        if self.rotary is None:
            return [range(self.start, self.context)] * axes
        return self.rotary.of(self.start, self.context)


def positions(pieces: Sequence[ScheduledTokens], num_rows: int, axes: int) -> list[list[int]]:
    """The rotary position of every row, on each axis; 0 for padding."""
    real = [piece.positions(axes) for piece in pieces]
    rows = [[i for places in real for i in places[axis]] for axis in range(axes)]
    return [row + [0] * (num_rows - len(row)) for row in rows]


def write_slots(pieces: Sequence[ScheduledTokens], page_size: int) -> list[int]:
    """Where the keys and values of all tokens of the pieces go (`engine.execution.kv_cache`)."""
    return [
        piece.pages[token // page_size] * page_size + token % page_size
        for piece in pieces
        for token in range(piece.start, piece.context)
    ]
