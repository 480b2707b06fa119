"""Load shedding: refuses tasks for a model that was full a moment ago, without asking it again.

Under high load almost every task is refused. Each of them would be validated and would cost a call
to the replica (and, with images, their preparation), which takes time from the answers that it
works on. So after a refusal, tasks that come within `HOLD_S` are refused here, except for as many
as tasks of this ingress have ended since: their places are free, and should not stay empty. Tasks
of other ingresses end unnoticed, so the time is bounded. It is shorter than the ``retry-after`` of
the refusal. This is state of one ingress process.
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
        """The body passes a task to the deployment, which runs or refuses it.

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
        """Raise the last refusal while it holds; return it if places have become free since."""
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
