"""Replicas that this process has seen hang: for a while it sends no tasks to them.

Ray notices a hung replica by its health check, half a minute later. Until then its queue looks
short, and every task that is sent to it waits. This is state of one ingress process: the retry
policy writes it, the request router reads it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

EJECTED_S = 60.0
"""After this time Ray has replaced the replica, or it was only slow."""


class EjectedReplicas:
    """Names of replicas, each for `EJECTED_S` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, float] = {}

    def add(self, replica: str) -> None:
        """Eject a replica that sends no messages."""
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
