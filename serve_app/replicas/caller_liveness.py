"""Notices ingresses that have died: Ray does not end the tasks that they have sent."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ray

from schema.errors import Cancelled

logger = logging.getLogger("ray.serve")

LOOK_EVERY_S = 2.0

_MISSES = 2
"""A caller that was not found so often in a row is dead; a failed lookup of Ray looks the same."""


@dataclass
class _Caller:
    """The state of one caller: when to look again, and how often in a row it was not found."""

    look_at: float
    misses: int = 0


class CallerMonitor:
    """The actors whose tasks a replica works on, by their names in Serve."""

    def __init__(self) -> None:
        self._known: dict[str, _Caller] = {}
        self._looks: set[asyncio.Task[None]] = set()  # or they might be collected as garbage
        # A thread of its own, so that nothing else waits if Ray's control store hangs.
        self._thread = ThreadPoolExecutor(1, "callers")

    def check(self, name: str) -> None:
        """Raise if the caller has died; noticed after some seconds. Costs almost nothing.

        Args:
            name: `serve_app.observability.identity.actor_name` of the caller; "" is never dead.

        Raises:
            Cancelled: the task is not wanted any more.
        """
        if not name:
            return
        now = time.monotonic()
        caller = self._known.get(name)
        if caller is None:
            caller = self._known[name] = _Caller(now + LOOK_EVERY_S)
        if now >= caller.look_at:
            caller.look_at = math.inf  # one look at a time
            look = asyncio.get_running_loop().create_task(self._look(name, caller))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
        if caller.misses >= _MISSES:
            raise Cancelled("the ingress that sent the task has died")

    async def _look(self, name: str, caller: _Caller) -> None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, _is_there, name)
            caller.misses = 0 if found else caller.misses + 1
        except Exception:  # then it stays unknown
            logger.warning("it is not known whether %s is alive", name, exc_info=True)
        finally:
            caller.look_at = time.monotonic() + LOOK_EVERY_S


def _is_there(name: str) -> bool:
    try:
        ray.get_actor(name, namespace="serve")
    except ValueError:  # Ray has no such actor any more
        return False
    return True
