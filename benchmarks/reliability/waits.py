"""Waits for bytes, and how much of them no replica of the model was live.

A replica is live from when Serve's controller has it running, which is when it tells the routers,
until it is killed or stopped. Its replacement starts when the controller has noticed the loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

Span = tuple[float, float]


class Wait(NamedTuple):
    """A wait of one client for the next bytes of its answer, in seconds.

    ``began`` is a time; ``without_replica`` is the part of ``seconds`` in which none was live;
    ``rest`` is the longest stretch of it in which one was. A wait may go on through several losses.
    """

    began: float
    seconds: float
    without_replica: float
    rest: float


def without_replica(lives: Iterable[Span], start: float, end: float) -> list[Span]:
    """The spans from ``start`` to ``end`` in which none of the lives (start, end) goes on."""
    gaps, reached = [], start
    for born, died in sorted(lives):
        if born > reached:
            gaps.append((reached, min(born, end)))
        reached = max(reached, died)
        if reached >= end:
            break
    else:
        gaps.append((reached, end))
    return [(first, last) for first, last in gaps if first < last]


def waits(times: Sequence[float], gaps: Sequence[Span]) -> list[Wait]:
    """The waits between the times of one answer: of its request, and of what came.

    ``gaps`` are in order and apart from each other.
    """
    found = []
    for before, after in pairwise(times):
        within = [(max(before, a), min(after, b)) for a, b in gaps if a < after and b > before]
        edges = [before, *(edge for gap in within for edge in gap), after]
        live = [stop - start for start, stop in zip(edges[::2], edges[1::2], strict=True)]
        missing = sum(stop - start for start, stop in within)
        found.append(Wait(before, after - before, missing, max(live)))
    return found
