"""Load shedding: what a full model refused a moment ago is refused again without asking it.

Under overload almost every task is refused. Each would be validated and would cost a call to the
replica (and, with images, their preparation), which takes time from the answers that it works on.
So after a refusal, the tasks that come within `HOLD_S` are refused here. As many are let through as
tasks of this ingress have ended since, because their places are free. Which tasks of other
ingresses have ended is not known here, so the time is bounded; it is shorter than the time that a
client is asked to wait. State of an ingress process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schema.errors import Overloaded

HOLD_S = 0.5


@dataclass
class _Full:
    """A refusal, until when it holds, and how many places have become free since."""

    refusal: Overloaded
    until: float
    freed: int = 0


class LoadShedder:
    """The last refusal of each deployment, for `HOLD_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full: dict[str, _Full] = {}

    def __bool__(self) -> bool:
        """Whether any task would be refused now."""
        now = self._clock()
        return any(now < full.until and not full.freed for full in self._full.values())

    def check(self, deployment: str) -> None:
        """Raise `Overloaded`, as the deployment did, if that was a moment ago."""
        self._room(deployment)

    @contextmanager
    def admit(self, deployment: str) -> Iterator[None]:
        """A task is with the deployment, or is refused by it, while the body runs.

        Raises:
            Overloaded: as `check` does; and what the body raises.
        """
        if full := self._room(deployment):
            full.freed -= 1
        try:
            yield
        except Overloaded as refusal:
            self._full[deployment] = _Full(refusal, self._clock() + HOLD_S)
            raise
        except BaseException:
            self._free(deployment)
            raise
        self._free(deployment)

    def _room(self, deployment: str) -> _Full | None:
        """The refusal that has to be obeyed, if there is room in spite of it."""
        full = self._full.get(deployment)
        if full is None or self._clock() >= full.until:
            return None
        if not full.freed:
            last = full.refusal
            raise type(last)(last.message, last.param, last.retry_after_s)
        return full

    def _free(self, deployment: str) -> None:
        if full := self._full.get(deployment):
            full.freed += 1
