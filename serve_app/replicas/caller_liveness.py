"""Ingresses that have died: Ray does not end the tasks that they have sent, so this does."""

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
"""An ingress that Ray does not find so often in a row is dead; a failed lookup looks the same."""


@dataclass
class _Caller:
    """What is known of one: when to look again, and how often in a row it was not found."""

    look_at: float
    misses: int = 0


class CallerMonitor:
    """Whether the actors live whose tasks a replica works on; by their names among Serve's."""

    def __init__(self) -> None:
        self._known: dict[str, _Caller] = {}
        self._looks: set[asyncio.Task[None]] = set()  # or they might be collected as garbage
        # A thread of its own: when Ray's control store hangs, nothing else must wait with it.
        self._thread = ThreadPoolExecutor(1, "caller-monitor")

    def check(self, name: str) -> None:
        """Raise if the caller has died: at most some seconds ago. It costs almost nothing.

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
        except Exception:  # then it is not known
            logger.warning("whether %s lives could not be found out", name, exc_info=True)
        finally:
            caller.look_at = time.monotonic() + LOOK_EVERY_S


def _is_there(name: str) -> bool:
    try:
        ray.get_actor(name, namespace="serve")
    except ValueError:  # Ray knows of no such actor any more
        return False
    return True
