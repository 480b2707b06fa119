"""How long steps take, by the clock, smoothed."""

from __future__ import annotations

from collections.abc import Mapping

_WEIGHT = 0.25  # of a new time in the smoothed one
_MOST_GROWTH = 2.0
"""A new time counts as so many times the smoothed one at most: the machine may have been busy."""


class SizeTimes:
    """Smoothed seconds of steps by their size; of other sizes an estimate.

    It is a little too high between known sizes, and more so above them: a fixed part of the time
    is taken for one that grows with the rows.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        """``seconds`` are known beforehand, by size."""
        self._seconds = dict(seconds)

    def note(self, size: int, seconds: float) -> None:
        """A step of this size took so long."""
        known = self._seconds.get(size)
        if known is None:
            self._seconds[size] = seconds
            return
        seconds = min(seconds, _MOST_GROWTH * known)
        self._seconds[size] = known + _WEIGHT * (seconds - known)

    def of(self, size: int) -> float | None:
        """What a step of this size takes; None before anything is known."""
        if (known := self._seconds.get(size)) is not None:
            return known
        smaller = max((n for n in self._seconds if n < size), default=None)
        larger = min((n for n in self._seconds if n > size), default=None)
        estimates = [] if smaller is None else [self._seconds[smaller] * size / smaller]
        if larger is not None:
            estimates.append(self._seconds[larger])
        return min(estimates, default=None)
