"""Replicas that this process has seen hang: nothing is sent to them for a while.

Ray notices a hung replica by its health check, half a minute later. Until then its queue looks
short, and every task that is sent to it waits. State of an ingress process: the retry policy writes
it, the request router reads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

EJECTED_S = 60.0
"""By then Ray has replaced it, or it was only slow."""


class EjectedReplicas:
    """Names of replicas, each for `EJECTED_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def add(self, replica: str) -> None:
        """This replica gave no sign of life."""
        self._until[replica] = self._clock() + EJECTED_S

    def __contains__(self, replica: str) -> bool:
        until = self._until.get(replica)
        if until is None:
            return False
        if until > self._clock():
            return True
        self._until.pop(replica, None)
        return False


EJECTED = EjectedReplicas()
