"""What a full model said a moment ago, said again without asking it.

Under a flood almost every task is refused. Each would cost a call to the replica (and, with
pictures, their preparation), which takes time from the answers that it works on. So after a refusal
the others that come within `HOLD_S` are refused here. That is shorter than what a client is told to
wait, and the replica's own queue keeps it busy meanwhile. State of an ingress process.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from schema.errors import Overloaded

HOLD_S = 0.1


class Refusals:
    """The last refusal of each deployment, for `HOLD_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[str, tuple[float, Overloaded]] = {}

    def add(self, deployment: str, refusal: Overloaded) -> None:
        """The deployment has refused a task just now."""
        self._last[deployment] = self._clock() + HOLD_S, refusal

    def check(self, deployment: str) -> None:
        """Raise `Overloaded`, as the deployment did, if that was a moment ago."""
        until, last = self._last.get(deployment, (0.0, None))
        if last is not None and self._clock() < until:
            raise Overloaded(last.message, last.param, last.retry_after_s)
