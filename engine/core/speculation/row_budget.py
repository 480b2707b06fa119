"""How many drafts a step takes: as many as make it draw most tokens a second."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.execution.batch_sizes import BatchSizes

_CLEARLY = 1.01
"""A step with drafts must draw so many times the tokens a second, because times are measured."""


@dataclass(frozen=True)
class Candidate:
    """The drafts that one sequence of a step could have.

    Attributes:
        chances: of each draft, that it and all before it are right; they never grow.
        context: tokens that its rows attend to.
    """

    chances: Sequence[float]
    context: int


def drafts_that_pay(
    candidates: Sequence[Candidate], room: int, sizes: BatchSizes, prefill_rows: int = 0
) -> list[int]:
    """For each sequence of a step the number of its drafts.

    A step draws a token for each sequence, and one more for each draft that is right. It takes what
    a forward of its batch size takes, and for each row the time to attend to its context. So drafts
    in the padding of a batch size are not free, but cheap. Certain ones are all taken: they save
    steps, which cost more than their forwards.

    Args:
        candidates: one for each sequence.
        room: drafts at most.
        sizes: with what forwards take.
        prefill_rows: rows of chunks of prompts in the same forward, which has a size for them.
    """
    counts = [0] * len(candidates)
    # Of equal chances the nearer drafts come first, so that sequences share the room.
    drafts = sorted(
        (-chance, place, owner)
        for owner, each in enumerate(candidates)
        for place, chance in enumerate(each.chances)
    )
    num_rows, per_token = len(candidates), sizes.attention_seconds
    fixed = per_token * sum(each.context for each in candidates)
    tokens, attention, best, taken = float(num_rows), 0.0, 0.0, 0
    certain = False
    for number in range(min(room, len(drafts)) + 1):
        if number:
            minus, _, owner = drafts[number - 1]
            tokens -= minus
            certain = minus == -1.0
            attention += per_token * candidates[owner].context
        size = sizes.for_decode(num_rows + (0 if prefill_rows else number))
        pace = tokens / (sizes.seconds.get(size, 1.0) + fixed + attention)
        if certain or pace > best * (_CLEARLY if number else 1.0):
            best, taken = pace, number
    for _, _, owner in drafts[:taken]:
        counts[owner] += 1
    return counts
